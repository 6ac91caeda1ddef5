"""Checks a run directory for damage and unfinished work, without changing anything in it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from streamcl.errors import CheckpointError, StreamclError
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger, LedgerEntry
from streamcl.forgetting.receipts.archive import RECEIPTS
from streamcl.forgetting.receipts.verified_chain import verify_chain
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS
from streamcl.requests.status import PENDING
from streamcl.runs.directory import CHECKPOINTS, CONFIG, SUMMARY
from streamcl.storage import files
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import CorruptCheckpoint, verify_checkpoint
from streamcl.storage.json_lines import json_object
from streamcl.storage.lock import holder_of
from streamcl.storage.manifest_mac import ManifestMac
from streamcl.storage.run_files import earlier_runs, unknown_files
from streamcl.storage.signing import PublicKeys

Level: TypeAlias = Literal["ok", "warning", "error"]

CONFIG_LIMIT = 1 << 20  # bytes; a configuration has a few thousand
SUMMARY_LIMIT = 1 << 28  # bytes; a confusion of some thousand classes has some millions
LINE_LIMIT = 1 << 22  # bytes; a record is a flat object of some hundred
LITTLE_SPACE = 512 << 20  # bytes; below it a long run's logs and checkpoints may not fit

_Loader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the other's time grows with the square of nesting


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One thing found. `place` is a path below the run directory; `hint` says what to do, where anything."""

    level: Level
    place: str
    text: str
    hint: str | None = None


Check: TypeAlias = Callable[[Path], Iterator[DoctorFinding]]
"""Yields the findings about one path; an error that it raises is a finding too."""


def check_run(run_dir: Path, keys: PublicKeys | None = None) -> list[DoctorFinding]:
    """Return everything found in a run directory, in a fixed order; it may belong to a running process.

    An "error" is something that a resume would stumble over, a "warning" something to know. Only the ledger
    is opened for more than reading: SQLite restores what a crash left in its journal. keys: the public keys
    to verify receipts with.
    """
    if not run_dir.is_dir():
        return [DoctorFinding("error", ".", f"{run_dir} is not a folder", "name the directory of a run")]
    checks: list[tuple[str, Check]] = [
        ("lock", _lock), (CONFIG, _config), (CHECKPOINTS, _checkpoints), (".", _temporaries), (".", _unknown),
        *((path.name, _log) for path in sorted(run_dir.glob("*.jsonl"))),
        (SUMMARY, _summary), (LEDGER, _ledger),
        (RECEIPTS, partial(_receipts, keys=keys or PublicKeys())), (STATISTICS, _statistics), (".", _space),
    ]  # fmt: skip
    return [finding for place, check in checks for finding in _findings(place, run_dir / place, check)]


def _findings(place: str, path: Path, check: Check) -> Iterator[DoctorFinding]:
    try:
        yield from check(path)
    except StreamclError as error:
        hint = "restore it, with the checkpoints, from a backup" if place == STATISTICS else error.hint
        yield DoctorFinding("error", place, str(error), hint)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        yield DoctorFinding("error", place, f"cannot be read: {' '.join(str(error).split())[:200]}")


def _lock(path: Path) -> Iterator[DoctorFinding]:
    holder = holder_of(path.parent)
    yield DoctorFinding("ok", "lock", "no process works here" if holder is None else f"in use by {holder}")


def _config(path: Path) -> Iterator[DoctorFinding]:
    if not path.exists():
        hint = "without it the run cannot be resumed by its directory"
        yield DoctorFinding("error", path.name, "is missing", hint)
    elif isinstance(yaml.load(_read(path, CONFIG_LIMIT).decode(), _Loader), dict):
        yield DoctorFinding("ok", path.name, "can be read")
    else:
        yield DoctorFinding("error", path.name, "is not a configuration: its top is not a mapping")


def _checkpoints(folder: Path) -> Iterator[DoctorFinding]:
    paths, good = list_checkpoints(folder), 0
    for path in reversed(paths):
        place = f"{CHECKPOINTS}/{path.name}"
        try:
            manifest = verify_checkpoint(path, ManifestMac()).manifest
        except CorruptCheckpoint as damage:
            if path.exists():  # otherwise the process at work here has replaced it in the meantime
                hint = "a resume takes the one before it"
                yield DoctorFinding("error", place, f"cannot be used: {damage}", hint)
        except (CheckpointError, OSError) as error:
            yield DoctorFinding("error", place, str(error), getattr(error, "hint", None))
        else:
            good += 1
            yield DoctorFinding("ok", place, f"good, at offset {manifest['offset']}, step {manifest['step']}")
    if not paths:
        hint = "a resume would start from the beginning"
        yield DoctorFinding("warning", CHECKPOINTS, "there is none", hint)
    elif not good:
        hint = "restore one from a backup, or start over with --fresh"
        yield DoctorFinding("error", CHECKPOINTS, "none can be used: the run cannot be resumed", hint)


def _temporaries(run_dir: Path) -> Iterator[DoctorFinding]:
    for folder in (run_dir, *sorted(path for path in run_dir.iterdir() if files.is_folder(path))):
        for path in sorted(folder.iterdir()):
            if files.is_temporary(path):
                text = "was left by a crash, or is being written right now"
                hint = "the next run here removes it"
                yield DoctorFinding("warning", str(path.relative_to(run_dir)), text, hint)


def _unknown(run_dir: Path) -> Iterator[DoctorFinding]:
    """Yield what an erasure does not reach: files that streamcl has not written, links, other names."""
    for path in unknown_files(run_dir):
        place = str(path.relative_to(run_dir))
        text = "streamcl has not written it, so no erasure reaches it"
        yield DoctorFinding("warning", place, text, "move it out, or delete it")
    for path in files.links_below(run_dir):
        hint = "put the files themselves there"
        yield DoctorFinding("error", str(path.relative_to(run_dir)), "is a link, which is refused", hint)
    for path in sorted(run_dir.glob("*.jsonl")):
        if path.stat().st_nlink > 1:
            text = "has another name elsewhere (a hard link), under which erased records stay"
            yield DoctorFinding("warning", path.name, text, "delete the other, or copy it")
    for path in earlier_runs(run_dir):
        text = f"{path.name} was moved aside by --fresh and keeps all that it holds"
        yield DoctorFinding("warning", ".", text, "delete it, or request there too what is to be erased")


def _log(path: Path) -> Iterator[DoctorFinding]:
    _check_plain(path)
    lines, torn = _count_lines(path)
    yield DoctorFinding("ok", path.name, f"{lines} lines")
    if torn is not None:
        level: Level = "warning" if torn > lines else "error"
        hint = "a resume cuts the log back to its checkpoint"
        yield DoctorFinding(level, path.name, f"line {torn} is torn: not a whole JSON object", hint)


def _count_lines(path: Path) -> tuple[int, int | None]:
    """Return the number of whole lines, and the number of the first that is torn; one line in memory."""
    whole, torn = 0, None
    with path.open("rb") as log:
        for number, line in enumerate(iter(lambda: log.readline(LINE_LIMIT), b""), start=1):
            if line.endswith(b"\n") and json_object(line) is not None:
                whole += 1
            else:
                torn = torn or number
    return whole, torn


def _summary(path: Path) -> Iterator[DoctorFinding]:
    if not path.exists():
        text = "is missing: the run is unfinished"
        yield DoctorFinding("warning", path.name, text, "streamcl run continues it")
    elif json_object(_read(path, SUMMARY_LIMIT)) is not None:
        yield DoctorFinding("ok", path.name, "the run has ended")
    else:
        yield DoctorFinding("error", path.name, "is not a JSON object")


def _ledger(path: Path) -> Iterator[DoctorFinding]:
    if not path.exists():
        return
    entries = _ledger_entries(path)
    pending = sum(1 for entry in entries if entry.status in PENDING)
    yield DoctorFinding("ok", LEDGER, f"{len(entries)} forgetting requests, {pending} pending")
    for entry in entries:
        request = f"request {entry.id!r}"
        if entry.status in PENDING:
            hint = "the next run carries it out"
            yield DoctorFinding("warning", LEDGER, f"{request} is {entry.status}", hint)
        elif entry.status == "failed":
            hint = f"streamcl retry RUN {entry.id} requests it again"
            yield DoctorFinding("error", LEDGER, f"{request} failed: {entry.reason}", hint)
        elif entry.body is not None and entry.status == "done":
            yield DoctorFinding("warning", LEDGER, f"{request} is done but its contents are still stored")


def _ledger_entries(path: Path) -> list[LedgerEntry]:
    if not path.exists():
        return []
    _check_plain(path)
    with Ledger(path) as ledger:
        return ledger.entries()


def _receipts(folder: Path, keys: PublicKeys) -> Iterator[DoctorFinding]:
    try:
        entries = _ledger_entries(folder.parent / LEDGER)
    except (StreamclError, OSError):
        return  # reported as damage of the ledger
    receipts = verify_chain(folder.parent, entries, keys).receipts.values()
    signed = sum(receipt.signed_by is not None for receipt in receipts)
    if receipts:
        yield DoctorFinding("ok", RECEIPTS, f"{len(receipts)} receipts in an unbroken chain, {signed} signed")


def _statistics(path: Path) -> Iterator[DoctorFinding]:
    if path.exists():
        with closing(BlockFile(path)) as file:
            cohorts, blocks, size = file.check()
        text = f"sums of {cohorts} classes or subjects, {blocks} blocks, {size} bytes"
        yield DoctorFinding("ok", STATISTICS, text)


def _space(run_dir: Path) -> Iterator[DoctorFinding]:
    free = files.free_bytes(run_dir)
    enough = free >= LITTLE_SPACE
    hint = None if enough else "a full disk ends the run at its next checkpoint"
    yield DoctorFinding("ok" if enough else "warning", ".", f"{free >> 20} MiB free", hint)


def _check_plain(path: Path, limit: int | None = None) -> None:
    """Raise OSError unless it is a plain file (a pipe would make us wait) of at most `limit` bytes."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("not a plain file")
    if limit is not None and facts.st_size > limit:
        raise OSError(f"it has {facts.st_size} bytes, more than any such file")


def _read(path: Path, limit: int) -> bytes:
    _check_plain(path, limit)
    return path.read_bytes()
