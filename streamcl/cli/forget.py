"""streamcl forget, retry and verify: requests to a running or stopped run, and checks of their receipts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from streamcl.cli.forget_plan import print_plan
from streamcl.cli.messages import show_messages
from streamcl.cli.run_folder import RUN
from streamcl.cli.terminal import echo
from streamcl.errors import ConfigError, ForgettingError, RunBusy
from streamcl.requests.status import PENDING

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from streamcl.events import ForgetRequest
    from streamcl.forgetting.ledger.ledger import Ledger, LedgerEntry

EXECUTE_OPTION = click.option(
    "--execute", is_flag=True, help="Carry it out now; where a process works on the run, wait for it."
)
WAIT_OPTION = click.option(
    "--wait", type=click.FloatRange(0), metavar="SECONDS", help="Wait for a running process to do it."
)
EXIT_NOT_FINISHED = 8
"""The exit code where a request was waited for and has not been carried out yet."""
NO_OPTIONS = {"offset", "id", "samples"}  # fields that only a stream, a configuration or Python gives


def _ids(path: str) -> list[str]:
    try:
        with click.open_file(path, encoding="utf-8") as lines:
            return [line.strip() for line in lines if line.strip()]
    except OSError as error:
        raise click.UsageError(f"--ids: {error}") from error


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


WRITTEN: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    "ids": ("FILE", _ids, " FILE has one a line, - is standard input."),
    "offsets": ("FROM:TO", _span, ""),
    "deadline": ("ISO", _instant, ""),
}
"""Fields that are not written as they are: the form, its reader, and what the help adds."""


def _option(name: str, field: FieldInfo) -> click.Option:
    """Return the option for a field of a request."""
    form, reader, more = WRITTEN.get(name, (None, None, ""))
    kinds = (field.annotation, *get_args(field.annotation))
    choices = next((get_args(each) for each in kinds if get_origin(each) is Literal), None)
    return click.Option(
        ["--class" if name == "label" else f"--{name.replace('_', '-')}", name],
        type=reader or (click.Choice(choices) if choices else None),
        is_flag=field.annotation is bool,
        default=field.default or None,
        show_default=True,
        metavar=form,
        help=f"{field.description}{more}",
    )


class RequestCommand(click.Command):
    """A command with an option for each field of a request, read from the model when it is called."""

    @cached_property
    def _fields(self) -> list[click.Parameter]:
        from streamcl.events import ForgetRequest

        fields = ForgetRequest.model_fields
        return [_option(name, each) for name, each in fields.items() if name not in NO_OPTIONS]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and those of the request."""
        own = super().get_params(ctx)
        return [*own[:1], *self._fields, *own[1:]]


@click.command(cls=RequestCommand)
@click.argument("run", type=RUN)
@click.option("--unseen", is_flag=True, help="Submit it even where nothing that has passed fits it.")
@click.option(
    "--plan", is_flag=True, help="Say how it would be done, what it costs and leaves; submit nothing."
)
@EXECUTE_OPTION
@WAIT_OPTION
def forget(run: Path, execute: bool, unseen: bool, plan: bool, wait: float | None, **fields: Any) -> int:
    """Ask RUN to forget; the request is durable before its id is printed.

    A running process carries it out before its next batch, a stopped run when it goes on, or --execute.
    Exit code 8 where --wait ended before it was carried out.
    """
    from streamcl.events import ForgetRequest
    from streamcl.forgetting.ledger.requests import submit

    given = {name: value for name, value in fields.items() if value not in (None, False)}
    request = ForgetRequest(**given)
    with _ledger(run) as ledger:
        if not unseen:
            _refuse_unmatched(run, ledger, request)
        if plan:
            print_plan(run, request)
            return 0
        entry = submit(ledger, request)
    return _follow(run, entry.id, execute=execute, wait=wait)


@click.command("retry")
@click.argument("run", type=RUN)
@click.argument("request", metavar="ID")
@EXECUTE_OPTION
@WAIT_OPTION
def retry_request(run: Path, request: str, execute: bool, wait: float | None) -> int:
    """Ask RUN again for a request that has failed, by its id or its key."""
    from streamcl.forgetting.ledger.requests import retry

    with _ledger(run) as ledger:
        entry = retry(ledger, request)
    return _follow(run, entry.id, execute=execute, wait=wait)


@click.command()
@click.argument("receipts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Public keys of the operator, as `streamcl key show` prints them; your own by default.",
)
@click.option(
    "--roots",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PEM",
    help="Certificates of authorities that you trust: the receipts' time stamps are verified with them.",
)
@click.option("--show", is_flag=True, help="Print each receipt's content as well.")
def verify(receipts: tuple[Path, ...], keys: Path | None, roots: Path | None, show: bool) -> None:
    """Check RECEIPTS: who signed them, not a byte changed, and within a run its chain and what it keeps.

    RECEIPTS are files, or runs, of which every receipt is checked. A receipt (ID.dsse) can be verified
    anywhere with the public keys of its operator, and without the run.
    The head of a chain (_head.dsse) is read with the chain, and passed over here.
    """
    from streamcl.forgetting.receipts.signature import verify_signature
    from streamcl.forgetting.receipts.timestamp import verify_stamp
    from streamcl.forgetting.receipts.verify import ReceiptVerifier
    from streamcl.storage.hash_chain import HEAD
    from streamcl.storage.key_folder import default_key_folder
    from streamcl.storage.signing import PublicKeys

    known = default_key_folder().public_keys() if keys is None else PublicKeys.read(keys)
    verifier = ReceiptVerifier(known)
    named = [path for given in receipts for path in _receipts_at(given) if path.name != HEAD]
    if not named:
        raise ForgettingError(f"{HEAD} is the signed head of a chain and no receipt: name a receipt")
    for path in named:
        for line in verifier.verify(path):
            echo(f"{path.name}: {line}")
        if roots is not None:
            echo(f"{path.name}: {verify_stamp(path, roots)}")
        if show:
            content = verify_signature(path, known).receipt.to_json()
            echo(json.dumps(content, indent=2))


def _receipts_at(path: Path) -> list[Path]:
    """Return the file, or every receipt of the run in a folder. Raise ForgettingError where it has none."""
    from streamcl.forgetting.receipts.archive import RECEIPTS

    if not path.is_dir():
        return [path]
    found = sorted((path / RECEIPTS).glob("*.json"))
    if not found:
        raise ForgettingError(f"{path} has no receipts", hint="a request has one once it is carried out")
    return found


def _ledger(run: Path) -> Ledger:
    """Return the open ledger of `run`. Raise ConfigError where the directory holds no run."""
    from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
    from streamcl.runs.directory import CONFIG

    if not (run / CONFIG).exists():
        raise ConfigError(f"{run} holds no run: there is no {CONFIG} in it")
    return Ledger(run / LEDGER)


def _refuse_unmatched(run: Path, ledger: Ledger, request: ForgetRequest) -> None:
    """Raise ForgettingError where nothing that has passed fits, but not while a process adds to it."""
    from streamcl.forgetting.ledger.requests import is_known, refuse_unmatched
    from streamcl.storage.lock import holder_of

    if holder_of(run) is None and not is_known(ledger, request):
        refuse_unmatched(run, request)


def _follow(run: Path, request: str, *, execute: bool, wait: float | None) -> int:
    """Print the id of the request, then its outcome where it is executed here or waited for.

    Return the exit code: 0, or that of a wait that was too short. Raise ForgettingError where the request
    was refused or has failed.
    """
    from streamcl.storage.run_files import earlier_runs

    echo(request)
    for earlier in earlier_runs(run):
        echo(f"{earlier} was moved aside by --fresh and keeps its data: request it there too", err=True)
    if execute:
        entry = _execute(run, request, wait)
    elif wait is not None:
        entry = _wait(run, request, wait)
    else:
        return 0
    if entry.status in PENDING:
        echo(f"{entry.status}, not carried out yet")
        return EXIT_NOT_FINISHED
    _report(run, entry)
    return 0


def _execute(run: Path, request: str, seconds: float | None) -> LedgerEntry:
    """Carry the request out; where a process works on the run, wait until it has done so, or has ended."""
    from streamcl.runs.open import execute_pending
    from streamcl.storage.lock import holder_of

    if (holder := holder_of(run)) is not None:
        echo(f"waiting for {holder}, which carries it out before its next batch", err=True)
        entry = _wait(run, request, seconds, or_until=lambda: holder_of(run) is None)
        if entry.status not in PENDING or holder_of(run) is not None:
            return entry
    try:
        with show_messages():
            execute_pending(run)
    except RunBusy:  # another process was faster
        return _execute(run, request, seconds)
    return _wait(run, request, 0.0)


def _wait(
    run: Path, request: str, seconds: float | None, or_until: Callable[[], bool] = lambda: False
) -> LedgerEntry:
    """Return the request's entry once it is over, the time has passed (None: never) or a condition holds."""
    from streamcl.forgetting.ledger.ledger import LEDGER, Ledger

    end = None if seconds is None else time.monotonic() + seconds
    with Ledger(run / LEDGER) as ledger:
        while (entry := ledger.entry(request)).status in PENDING and not or_until():
            if end is not None and time.monotonic() >= end:
                break
            time.sleep(0.1)
    return entry


def _report(run: Path, entry: LedgerEntry) -> None:
    """Say what came of a request that is over. Raise ForgettingError, in one sentence, where not done."""
    from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt

    path = newest_receipt(run, entry.id)
    receipt = read_receipt(path)
    if entry.status != "done":
        sentence, _, reasons = (receipt.reason or "").partition(": ")
        hint = f"{path} gives the reason of each method" if ";" in reasons else None
        raise ForgettingError(f"{entry.status}: {sentence if hint else receipt.reason}", hint=hint)
    echo(f"done: {receipt.guarantee}, by {receipt.method}; {path}")
