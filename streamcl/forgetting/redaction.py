"""Takes erased samples and classes out of what a run directory keeps, byte for byte in the same places."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.storage import files
from streamcl.storage.files import Disk

LogRecord: TypeAlias = dict[str, Any]
Edit: TypeAlias = Callable[[LogRecord], LogRecord | None]
"""Returns what a record becomes, or None where it stays."""

FORGOTTEN = "(forgotten)"
"""Stands for the name of a forgotten class where its counts stay."""

PORTION = 1 << 20  # bytes
DERIVED = ("summary.json", "report.html", "adapter")
"""Made from the run when it ends; removed with an erasure, and made anew at the next end."""


@dataclass(frozen=True, slots=True)
class RedactionTarget:
    """What must not be in any retained file: records at these offsets, these ids, this class."""

    offsets: Collection[int]
    ids: Collection[str]
    label: str | None = None

    def edit(self, record: LogRecord) -> LogRecord | None:
        """What a record of any log becomes."""
        if record.get("offset") in self.offsets and "id" in record:
            return _erased(record)
        if record.get("id") in self.ids:
            return _erased(record)
        if self.label is None:
            return None
        if record.get("label") == self.label:
            return _erased(record)
        changed = {
            name: _without(value, self.label)
            for name, value in record.items()
            if name in {"predicted", "classes", "label"} and _mentions(value, self.label)
        }
        return {**record, **changed} if changed else None


def rewrite_logs(folder: Path, target: RedactionTarget, *, disk: Disk = files.DISK) -> int:
    """Edit every log of the run directory; how many records changed.

    A changed line keeps its length (spaces fill it), so the positions that checkpoints hold stay right.
    After a crash each log has its old content or its new; doing it again is harmless. Whoever writes the
    logs must open them anew afterwards.
    """
    return sum(rewrite(path, target.edit, disk=disk) for path in sorted(folder.glob("*.jsonl")))


def rewrite(path: Path, edit: Edit, *, disk: Disk = files.DISK) -> int:
    """Edit the records of one log, whole or not at all; how many changed. Nothing is written where none."""
    changed = sum(old != new for old, new in _lines(path, edit))
    if not changed:
        return 0
    temporary = files.temporary_beside(path)
    with disk.create(temporary) as handle:
        waiting = bytearray()
        for _, new in _lines(path, edit):
            waiting += new
            if len(waiting) >= PORTION:
                files.write_all(handle, bytes(waiting), disk=disk)
                waiting = bytearray()
        files.write_all(handle, bytes(waiting), disk=disk)
        disk.fsync(handle)
    disk.replace(temporary, path)
    disk.fsync_folder(path.parent)
    return changed


def remove_derived(folder: Path, *, disk: Disk = files.DISK) -> list[str]:
    """Remove summary, report and exported adapter, which hold what was erased; their names."""
    found = [name for name in DERIVED if (folder / name).exists()]
    for name in found:
        files.remove(folder / name, disk=disk)
    return found


def scores_without(state: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Prequential figures that do not name a class; its counts stay, under "(forgotten)"."""
    sums: dict[tuple[str, str | None], int] = {}
    for one, other, count in state["confusion"]:
        key = (_renamed(one, label), _renamed(other, label))
        sums[key] = sums.get(key, 0) + count
    return {**state, "confusion": [[one, other, count] for (one, other), count in sums.items()]}


def gallery_without(state: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A gallery's index that does not name a class as predicted; entries of the class itself go."""
    return {
        "entries": [
            {**entry, "predicted": None if entry["predicted"] == label else entry["predicted"]}
            for entry in state["entries"]
            if entry["label"] != label
        ]
    }


def logged_ids(folder: Path) -> Iterator[tuple[int | None, str]]:
    """Every sample id in the logs, each with its offset."""
    for path in sorted(folder.glob("*.jsonl")):
        for record in _records(path):
            if isinstance(name := record.get("id"), str):
                yield record.get("offset"), name


def _renamed(name: str | None, label: str) -> Any:
    return FORGOTTEN if name == label else name


def _erased(record: LogRecord) -> LogRecord:
    """Its place stays, so that the log has no gap."""
    return {**{name: record[name] for name in ("step", "offset") if name in record}, "erased": True}


def _mentions(value: Any, label: str) -> bool:
    return value == label or (isinstance(value, list) and label in value)


def _without(value: Any, label: str) -> Any:
    return [item for item in value if item != label] if isinstance(value, list) else None


def _lines(path: Path, edit: Edit) -> Iterator[tuple[bytes, bytes]]:
    """Every line of the log, as it is and as it becomes; a torn one stays."""
    with path.open("rb") as log:
        for old in log:
            record = _record(old)
            new = None if record is None else edit(record)
            yield old, old if new is None else _fitted(new, len(old))


def _records(path: Path) -> Iterator[LogRecord]:
    with path.open("rb") as log:
        for line in log:
            if (record := _record(line)) is not None:
                yield record


def _record(line: bytes) -> LogRecord | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _fitted(record: LogRecord, length: int) -> bytes:
    """The record as a line of exactly that many bytes."""
    candidates: Sequence[LogRecord] = (record, {"erased": True}, {})
    texts = (json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() for each in candidates)
    text = next(text for text in texts if len(text) < length)
    return text.ljust(length - 1) + b"\n"
