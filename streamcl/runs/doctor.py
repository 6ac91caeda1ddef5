"""What is wrong in a run directory, said without changing anything in it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from streamcl.errors import CheckpointError, ForgettingError
from streamcl.forgetting.ledger import LEDGER, Ledger
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS
from streamcl.storage import files
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import CorruptCheckpoint, verify_checkpoint
from streamcl.storage.lock import holder_of

Level: TypeAlias = Literal["ok", "warning", "error"]

CONFIG_LIMIT = 1 << 20  # bytes; a configuration has a few thousand
SUMMARY_LIMIT = 1 << 28  # bytes; a confusion of some thousand classes has some millions
LINE_LIMIT = 1 << 22  # bytes; a record is a flat object of some hundred
LITTLE_SPACE = 512 << 20  # bytes; below it a long run's logs and checkpoints may not fit
SUMMARY, CHECKPOINTS = "summary.json", "checkpoints"


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One thing found. `place` is a path below the run directory; `hint` says what to do, where anything."""

    level: Level
    place: str
    text: str
    hint: str | None = None


def examine(run_dir: Path) -> list[DoctorFinding]:
    """Everything found in a run directory, in a fixed order; it may belong to a running process.

    An "error" is something that a resume would stumble over, a "warning" something to know. Only the ledger
    is opened for more than reading: SQLite puts back what a crash left in its journal.
    """
    if not run_dir.is_dir():
        return [DoctorFinding("error", ".", f"{run_dir} is not a folder", "name the directory of a run")]
    examinations: tuple[Callable[[Path], Iterator[DoctorFinding]], ...] = (
        _lock, _config, _checkpoints, _temporaries, _logs, _summary, _ledger, _statistics, _space,
    )  # fmt: skip
    return [finding for examination in examinations for finding in examination(run_dir)]


def _lock(run_dir: Path) -> Iterator[DoctorFinding]:
    holder = holder_of(run_dir)
    yield DoctorFinding("ok", "lock", "no process works here" if holder is None else f"in use by {holder}")


def _config(run_dir: Path) -> Iterator[DoctorFinding]:
    path = run_dir / "config.yaml"
    try:
        found = yaml.safe_load(_read(path, CONFIG_LIMIT).decode())
    except FileNotFoundError:
        yield DoctorFinding(
            "error", path.name, "is missing", "without it the run cannot be resumed by its directory"
        )
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        yield DoctorFinding("error", path.name, f"cannot be read: {_line(error)}")
    else:
        if isinstance(found, dict):
            yield DoctorFinding("ok", path.name, "can be read")
        else:
            yield DoctorFinding("error", path.name, "is no configuration: its top is not a mapping")


def _checkpoints(run_dir: Path) -> Iterator[DoctorFinding]:
    try:
        paths = list_checkpoints(run_dir / CHECKPOINTS)
    except CheckpointError as error:
        yield DoctorFinding("error", CHECKPOINTS, str(error))
        return
    good = 0
    for path in reversed(paths):
        place = f"{CHECKPOINTS}/{path.name}"
        try:
            manifest = verify_checkpoint(path).manifest
        except CorruptCheckpoint as damage:
            if not path.exists():
                continue  # the process at work here has replaced it in the meantime
            yield DoctorFinding(
                "error", place, f"cannot be used: {damage}", "a resume takes the one before it"
            )
        except (CheckpointError, OSError) as error:
            yield DoctorFinding("error", place, str(error), getattr(error, "hint", None))
        else:
            good += 1
            yield DoctorFinding("ok", place, f"good, at offset {manifest['offset']}, step {manifest['step']}")
    if not paths:
        yield DoctorFinding(
            "warning", CHECKPOINTS, "there is none", "a resume would start from the beginning"
        )
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


def _logs(run_dir: Path) -> Iterator[DoctorFinding]:
    for path in sorted(run_dir.glob("*.jsonl")):
        if not path.is_file():
            yield DoctorFinding("error", path.name, "is not a plain file")
            continue
        try:
            lines, torn = _count_lines(path)
        except OSError as error:
            yield DoctorFinding("error", path.name, f"cannot be read: {error.strerror}")
            continue
        yield DoctorFinding("ok", path.name, f"{lines} lines")
        if torn is not None:
            level: Level = "warning" if torn > lines else "error"
            hint = "a resume cuts the log back to its checkpoint"
            yield DoctorFinding(level, path.name, f"line {torn} is torn: not a whole JSON object", hint)


def _count_lines(path: Path) -> tuple[int, int | None]:
    """Whole lines in the log, and the number of the first that is none; one line in memory at a time."""
    whole, torn = 0, None
    with path.open("rb") as log:
        for number, line in enumerate(iter(lambda: log.readline(LINE_LIMIT), b""), start=1):
            if line.endswith(b"\n") and _is_object(line):
                whole += 1
            else:
                torn = torn or number
    return whole, torn


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _summary(run_dir: Path) -> Iterator[DoctorFinding]:
    path = run_dir / SUMMARY
    if not path.exists():
        yield DoctorFinding(
            "warning", path.name, "is missing: the run has not ended", "streamcl run continues it"
        )
        return
    try:
        whole = _is_object(_read(path, SUMMARY_LIMIT))
    except OSError as error:
        yield DoctorFinding("error", path.name, f"cannot be read: {_line(error)}")
        return
    yield (
        DoctorFinding("ok", path.name, "the run has ended")
        if whole
        else DoctorFinding("error", path.name, "is not a JSON object")
    )


def _ledger(run_dir: Path) -> Iterator[DoctorFinding]:
    path = run_dir / LEDGER
    if not path.exists():
        return
    if not path.is_file():
        yield DoctorFinding("error", LEDGER, "is not a plain file")
        return
    try:
        with Ledger(path) as ledger:
            entries, pending = ledger.entries(), ledger.pending()
    except ForgettingError as error:
        yield DoctorFinding("error", LEDGER, str(error), error.hint)
        return
    yield DoctorFinding("ok", LEDGER, f"{len(entries)} forgetting requests, {len(pending)} pending")
    for entry in entries:
        if entry.progress in {"received", "started"}:
            yield DoctorFinding(
                "warning", LEDGER, f"request {entry.id!r} is {entry.progress}", "the next run carries it out"
            )
        elif entry.progress == "failed":
            hint = f"streamcl retry RUN {entry.id} asks again"
            yield DoctorFinding("error", LEDGER, f"request {entry.id!r} failed: {entry.reason}", hint)
        elif entry.body is not None and entry.progress == "done":
            yield DoctorFinding(
                "warning", LEDGER, f"request {entry.id!r} is done but still holds what it said"
            )


def _statistics(run_dir: Path) -> Iterator[DoctorFinding]:
    path = run_dir / STATISTICS
    if not path.exists():
        return
    try:
        with closing(BlockFile(path)) as file:
            cohorts, blocks, size = file.examine()
    except ForgettingError as error:
        yield DoctorFinding(
            "error", STATISTICS, str(error), "restore it, with the checkpoints, from a backup"
        )
        return
    yield DoctorFinding(
        "ok", STATISTICS, f"sums of {cohorts} classes or subjects, {blocks} blocks, {size} bytes"
    )


def _space(run_dir: Path) -> Iterator[DoctorFinding]:
    free = files.free_bytes(run_dir)
    level: Level = "ok" if free >= LITTLE_SPACE else "warning"
    hint = None if level == "ok" else "a full disk ends the run at its next checkpoint"
    yield DoctorFinding(level, ".", f"{free >> 20} MiB free", hint)


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a plain file; never waits for a pipe, never takes in more than a file of its kind has."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("not a plain file")
    if facts.st_size > limit:
        raise OSError(f"it has {facts.st_size} bytes, more than any such file")
    return path.read_bytes()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
