"""Commands that only look: validate, schema, list, status, report, doctor."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo
from streamcl.errors import CheckpointError, ConfigError

OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override one value; may be repeated."
)


@click.command()
@click.argument("configs", nargs=-1, required=True, type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--syntax", is_flag=True, help="The options alone, not whether what they name exists.")
def validate(configs: tuple[Path, ...], overrides: tuple[str, ...], syntax: bool) -> None:
    """Check YAML files; every fault is shown with its place, and nothing runs.

    Callables, arguments, sources, models and files of weights that they name must exist on this machine; no
    network is used.
    """
    from streamcl.config.load import load_config

    problems: list[str] = []
    for path in configs:
        try:
            config = load_config(path, overrides)
            if not syntax:
                from streamcl.factory.check_names import check_names

                check_names(config)
            echo(f"{path}: good")
        except ConfigError as error:
            problems += error.problems or (f"{path}: {error}",)
    if problems:
        raise ConfigError("not every file is valid", problems=tuple(problems))


@click.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from streamcl.config.load import schema as config_schema

    echo(json.dumps(config_schema(), indent=2))


@click.command("list")
@click.argument(
    "what",
    type=click.Choice(["sources", "detectors", "sinks", "learners", "forgetting", "backbones", "data"]),
)
@click.argument("pattern", default="*")
def list_names(what: str, pattern: str) -> None:
    """List what a configuration can name; PATTERN (with *) narrows it down."""
    from fnmatch import fnmatch

    from streamcl.factory.names import known_names

    for name, note in known_names(what):
        if fnmatch(name, pattern):
            echo(f"{name:32} {note}".rstrip())


@click.command()
@click.argument("run", type=RUN)
def status(run: Path) -> None:
    """Show how far RUN has come, and its figures."""
    from streamcl.report.overview import complete_summary, text_summary
    from streamcl.report.reading import read_run
    from streamcl.storage.lock import holder_of

    log = read_run(run)
    echo(text_summary(complete_summary(log)))
    if (holder := holder_of(run)) is not None:
        echo(f"In progress: {holder} works on it.")
    elif not log.finished:
        echo(f"Interrupted at offset {log.end}. This command continues it:")
        echo(f"  streamcl run {shlex.quote(f'{run}/config.yaml')} --set {shlex.quote(f'run_dir={run}')}")


@click.command()
@click.argument("run", type=RUN)
def report(run: Path) -> None:
    """Write RUN's report.html anew from what the run has left, finished or not."""
    from streamcl.report.page import write_report

    echo(str(write_report(run)))


@click.command()
@click.argument("run", type=RUN)
def doctor(run: Path) -> int:
    """Check RUN's directory and say what is wrong with it."""
    from streamcl.runs.doctor import check_run
    from streamcl.storage.key_folder import default_key_folder

    findings = check_run(run, default_key_folder().public_keys())
    for finding in findings:
        hint = f" ({finding.hint})" if finding.hint else ""
        echo(f"{finding.level:8} {finding.place}: {finding.text}{hint}")
    return CheckpointError.exit_code if any(finding.level == "error" for finding in findings) else 0
