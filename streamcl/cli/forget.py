"""streamcl forget, retry and verify: requests to a running or stopped run, and checks of their receipts."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamcl.cli.inspect_commands import RUN
from streamcl.cli.messages import show_messages
from streamcl.errors import ConfigError, ForgettingError

if TYPE_CHECKING:
    from streamcl.forgetting.ledger import Ledger

EXECUTE = click.option(
    "--execute", is_flag=True, help="Carry it out at once, in a run that no process works on."
)
WAIT = click.option(
    "--wait", type=click.FloatRange(0), metavar="SECONDS", help="Wait for a running process to do it."
)


@click.command()
@click.argument("run", type=RUN)
@click.option("--class", "label", help="Forget a class: the concept goes, not only the samples.")
@click.option("--subject", help="Forget everything of a subject.")
@click.option("--all-users", is_flag=True, help="Forget every sample whose privacy is user.")
@click.option(
    "--ids",
    "ids_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True),
    help="Forget the samples whose ids are in a file, one a line; - reads standard input.",
)
@click.option("--id-pattern", help="Forget samples by their ids: * is any letters, ? is one.")
@click.option("--domain", help="Forget the samples of a domain.")
@click.option("--offsets", metavar="FROM:TO", help="Forget the samples at these offsets of the stream.")
@click.option(
    "--guarantee",
    type=click.Choice(["exact", "bounded", "approximate"]),
    help="Refuse unless at least this strong.",
)
@click.option("--method", default="auto", show_default=True, help="A method by name.")
@click.option(
    "--on-return",
    type=click.Choice(["drop", "learn"]),
    default="drop",
    show_default=True,
    help="What to do with samples of it that the stream brings again.",
)
@click.option("--deadline", metavar="ISO", help="When it has to be done; goes into the receipt.")
@click.option("--key", help="The same key again is the same request.")
@EXECUTE
@WAIT
def forget(run: Path, ids_file: Path | None, execute: bool, wait: float | None, **options: Any) -> None:
    """Ask RUN to forget; the request is durable before its id is printed.

    A running process carries it out before its next batch, a stopped run when it goes on, or --execute.
    """
    from streamcl.events import ForgetRequest
    from streamcl.forgetting.requests import submit

    with _ledger(run) as ledger:
        entry = submit(ledger, ForgetRequest(**_fields(ids_file, options)))
    _follow(run, entry.id, execute=execute, wait=wait)


@click.command("retry")
@click.argument("run", type=RUN)
@click.argument("request", metavar="ID")
@EXECUTE
@WAIT
def retry_request(run: Path, request: str, execute: bool, wait: float | None) -> None:
    """Ask RUN again for a request that has failed, by its id or its key."""
    from streamcl.forgetting.requests import retry

    with _ledger(run) as ledger:
        entry = retry(ledger, request)
    _follow(run, entry.id, execute=execute, wait=wait)


@click.command()
@click.argument(
    "receipts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
def verify(receipts: tuple[Path, ...]) -> None:
    """Check RECEIPTS: not a byte changed, the chain whole, and nothing erased in what the run keeps."""
    from streamcl.forgetting.receipts.verify import verify_receipt

    for path in receipts:
        for line in verify_receipt(path):
            click.echo(f"{path.name}: {line}")


def _ledger(run: Path) -> Ledger:
    """Return the open ledger of `run`. Raise ConfigError where the directory holds no run."""
    from streamcl.forgetting.ledger import LEDGER, Ledger
    from streamcl.runs.directory import CONFIG

    if not (run / CONFIG).exists():
        raise ConfigError(f"{run} holds no run: there is no {CONFIG} in it")
    return Ledger(run / LEDGER)


def _fields(ids_file: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request from the options of the command line."""
    fields = {name: value for name, value in options.items() if value not in (None, False)}
    if ids_file is not None:
        with click.open_file(str(ids_file), encoding="utf-8") as lines:
            fields["ids"] = [line.strip() for line in lines if line.strip()]
    if "offsets" in fields:
        fields["offsets"] = _span(fields["offsets"])
    if "deadline" in fields:
        fields["deadline"] = _instant(fields["deadline"])
    return fields


def _follow(run: Path, request: str, *, execute: bool, wait: float | None) -> None:
    """Print the id of the request, then its outcome where it is executed here or waited for."""
    click.echo(request)
    if execute:
        from streamcl.runs.open import execute_pending

        with show_messages():
            execute_pending(run)
    if execute or wait is not None:
        _report(run, request, wait or 0.0)


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise ForgettingError(f"--offsets is {text!r:.50}, expected two numbers like 100:200") from None


def _instant(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ForgettingError(f"--deadline is {text!r:.50}, expected a date like 2026-01-31T12:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _report(run: Path, request: str, wait: float) -> None:
    """Say what came of the request. Raises ForgettingError where it was refused or has failed."""
    from streamcl.forgetting.ledger import LEDGER, Ledger
    from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt

    until = time.monotonic() + wait
    with Ledger(run / LEDGER) as ledger:
        while (entry := ledger.entry(request)).progress in {
            "received",
            "started",
        } and time.monotonic() < until:
            time.sleep(0.1)
    if entry.progress in {"received", "started"}:
        click.echo(f"{entry.progress}, not carried out yet")
        return
    path = newest_receipt(run, request)
    receipt = read_receipt(path)
    if entry.progress != "done":
        raise ForgettingError(f"{entry.progress}: {receipt.reason}")
    click.echo(f"done: {receipt.guarantee}, by {receipt.method}; {path}")
