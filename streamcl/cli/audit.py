"""streamcl audit: is an erased model like those retrained without the data?"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import click

from streamcl.cli.messages import show_messages
from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo

EXIT_AUDIT_FAILED = 6
"""The exit code where the audited model is not like the references (that of `ForgettingError`)."""


@click.command()
@click.argument("run", type=RUN)
@click.option("--request", metavar="ID", help="Which erasure; the last one carried out by default.")
@click.option(
    "--references",
    type=click.IntRange(8, 10_000),
    help="Retrained models: 64 by default, 8 where each is a run of the stream.",
)
@click.option(
    "--rerun", is_flag=True, help="Retrain by running the stream again even where statistics would do."
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed for the samples that the references go without.",
)
@click.option(
    "--reconstruct",
    "pictures",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only write an HTML page of the pictures that the state can still give back.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def audit(
    run: Path,
    *,
    request: str | None,
    references: int | None,
    rerun: bool,
    seed: int,
    pictures: Path | None,
    as_json: bool,
) -> int:
    """Compare RUN's model with models retrained without what a request erased.

    Reads the stream again from its beginning; a learner without closed-form heads learns it again, up to 41
    times by default. The result is also written to RUN/audits. Exit code 6 where the model is not like the
    retrained ones.
    """
    if pictures is not None:
        return _write_pictures(run, pictures, request, seed)
    from streamcl.audit.data import AuditConfig
    from streamcl.audit.report import save_audit, text_table
    from streamcl.audit.run import audit_run
    from streamcl.storage.key_folder import default_key_folder

    # an exit by an exception removes temporary folders
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    config = AuditConfig(seed=seed)
    if references is not None:
        config = replace(config, references=references, reruns=references)
    with show_messages():
        report = audit_run(run, request=request, config=config, retrain=rerun)
    path = save_audit(run, report, signing_key=default_key_folder().key_in_use)
    if as_json:
        echo(json.dumps(report.to_json(), indent=2))
    else:
        echo(text_table(report))
        echo(f"streamcl: written to {path}", err=True)
    return EXIT_AUDIT_FAILED if report.verdict == "fail" else 0


def _write_pictures(run: Path, path: Path, request: str | None, seed: int) -> int:
    from streamcl.audit.pictures import summary, write_pictures

    with show_messages():
        sheets = write_pictures(run, path, request=request, seed=seed)
    for line in summary(sheets):
        echo(line)
    echo(f"streamcl: written to {path}", err=True)
    return 0
