"""streamcl serve: learns a stream and answers requests over HTTP meanwhile."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamcl.cli.inspect_commands import OVERRIDES
from streamcl.cli.messages import disk_errors, report_error, show_messages
from streamcl.cli.terminal import echo
from streamcl.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from streamcl.config.options.run import RunConfig
    from streamcl.serving.learner_reports import LearnerReports


FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--host", default="127.0.0.1", show_default=True, help="Other addresses need tokens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--predictors", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that predict."
)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="CPU threads of each."
)
@click.option(
    "--max-batch", type=click.IntRange(1, 64), default=32, show_default=True, help="Images of a batch."
)
@click.option(
    "--max-delay",
    type=click.FloatRange(0, 10_000),
    default=5.0,
    show_default=True,
    help="Milliseconds that an image waits for others of its batch.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(0, 60_000, min_open=True),
    help="Milliseconds from an image's arrival to its prediction, where its request sets none.",
)
@click.option(
    "--queue", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Images that may wait."
)
@click.option(
    "--publish-every",
    type=click.FloatRange(0.01, 86_400),
    default=2.0,
    show_default=True,
    help="Seconds between versions of the model.",
)
@click.option(
    "--tokens",
    type=FILE,
    metavar="FILE",
    help="Tokens of `streamcl token`, if not those beside the signing keys.",
)
@click.option("--require-tokens", is_flag=True, help="Also of those who ask on this machine.")
@click.option(
    "--public-name",
    "public_names",
    multiple=True,
    metavar="HOST",
    help="A name by which this server is reached, beside this machine's own.",
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="A proxy whose X-Forwarded-For and -Proto are believed; or a network, 10.0.0.0/8.",
)
@click.option(
    "--tls-cert",
    type=FILE,
    metavar="FILE",
    help="Certificate with its chain, PEM.",
)
@click.option(
    "--tls-key",
    type=FILE,
    metavar="FILE",
    help="Its key, PEM, without a password.",
)
@click.option(
    "--label-studio",
    metavar="URL",
    help="Label Studio, whose images are fetched with the key in LABEL_STUDIO_API_KEY.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.01, 1e6),
    help="Requests a second of one token, or of one address without. [default: 100 where tokens are needed]",
)
@click.option("--follow", is_flag=True, help="Do not end with the source: go on with what is added to it.")
def serve(
    config: Path,
    overrides: tuple[str, ...],
    *,
    host: str,
    port: int,
    predictors: int,
    threads: int,
    max_batch: int,
    max_delay: float,
    deadline_ms: float | None,
    queue: int,
    publish_every: float,
    tokens: Path | None,
    require_tokens: bool,
    public_names: tuple[str, ...],
    proxies: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    label_studio: str | None,
    rate: float | None,
    follow: bool,
) -> int:
    """Run CONFIG, a YAML file, and answer requests over HTTP by what it has learned so far.

    The run goes on where it stopped, as with `streamcl run`. Requests are answered until SIGTERM, also after
    the end of the stream; then the run is committed.
    """
    from streamcl.config.load import load_config
    from streamcl.factory.inbox import inbox_of
    from streamcl.runs.directory import folder_of

    settings = load_config(config, overrides)
    if settings.checkpoint is None:
        raise ConfigError(
            "checkpoint: null cannot be served: an erasure that was acknowledged must survive",
            hint="leave out 'checkpoint', or give it a number of samples",
        )
    try:
        from streamcl.serving.access.access_control import AccessOptions
        from streamcl.serving.access.tokens import default_token_file
        from streamcl.serving.http_server import NetworkOptions
        from streamcl.serving.label_studio.label_studio import server_from
        from streamcl.serving.prediction.pool import PredictorOptions
        from streamcl.serving.server import ServerOptions, serve_run
        from streamcl.serving.service import ServedRun
    except ImportError as error:
        hint = "pip install streamcl[serve]"
        raise MissingExtra(f"streamcl serve needs the package {error.name}", hint=hint) from error
    options = ServerOptions(
        host=host,
        port=port,
        max_batch=max_batch,
        max_delay=max_delay / 1000,
        queue=queue,
        predictors=PredictorOptions(
            count=predictors,
            threads=threads,
            deadline=None if deadline_ms is None else deadline_ms / 1000,
        ),
        access=AccessOptions(
            tokens=tokens or default_token_file().path,
            required=require_tokens,
            public_names=public_names,
            rate=rate,
        ),
        label_studio=server_from(label_studio, os.environ),
        network=NetworkOptions(tls_cert=tls_cert, tls_key=tls_key, proxies=proxies),
    )
    learn = functools.partial(learner_main, settings, publish_every, follow)
    with show_messages():
        folder = folder_of(settings)
        served = ServedRun(folder, settings.name, inbox_of(settings, folder))
        return serve_run(served, learn, options, lambda url: echo(f"serving on {url}"))


def learner_main(settings: RunConfig, publish_every: float, follow: bool, reports: LearnerReports) -> None:
    """Learn and publish: the body of the learner's process, which reports its errors as a command does."""
    from streamcl.serving.processes import learn_and_publish

    try:
        with show_messages(), disk_errors():
            learn_and_publish(settings, reports, every_seconds=publish_every, follow=follow)
    except Exception as error:
        sys.exit(report_error(error))
