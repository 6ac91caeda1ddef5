"""The facts of a run's checkpoints without loading them: place in the stream, size, age, and domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.errors import CheckpointError
from streamcl.report.series import as_int, submapping
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import MANIFEST, MANIFEST_LIMIT, TREE
from streamcl.storage.json_lines import json_object

CHECKPOINTS = "checkpoints"
"""The folder's name in a run directory."""
MAX_TREE = 16 << 20
"""Bytes of a checkpoint's state that are read for the accuracy by domain; a larger one is left unread."""


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint: its folder's name, the next record, its size in bytes, when it was written (epoch)."""

    name: str
    offset: int | None
    bytes: int
    written: float


class CheckpointLog:
    """The checkpoints of a run directory, of which new ones are read once.

    rows: oldest first. domains: right and wrong predictions by domain at the newest one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / CHECKPOINTS
        self.rows: list[CheckpointRow] = []
        self.domains: dict[str, tuple[int, int]] = {}

    def advance(self) -> bool:
        """Look for new checkpoints and gone ones; return whether there are any."""
        try:
            paths = list_checkpoints(self._folder)
        except CheckpointError:
            paths = []
        known = {row.name: row for row in self.rows}
        rows = [found for path in paths if (found := known.get(path.name) or _row(path)) is not None]
        if rows == self.rows:
            return False
        self.rows = rows
        self.domains = _domains(self._folder / rows[-1].name / TREE) if rows else {}
        return True


def _row(path: Path) -> CheckpointRow | None:
    """Return the facts of a checkpoint; None where it has just been removed."""
    try:
        manifest = json_object(_bounded(path / MANIFEST, MANIFEST_LIMIT)) or {}
        size = sum(each.stat().st_size for each in path.iterdir())
        written = path.stat().st_mtime
    except OSError:
        return None
    return CheckpointRow(path.name, as_int(manifest.get("offset")), size, written)


def _domains(path: Path) -> dict[str, tuple[int, int]]:
    try:
        state = json_object(_bounded(path, MAX_TREE)) or {}
    except OSError:
        return {}
    tallies: Mapping[str, Any] = submapping(submapping(state, "scores"), "domains")
    found = {}
    for name, tally in tallies.items():
        if isinstance(tally, list) and len(tally) == 2 and all(isinstance(each, int) for each in tally):
            found[name.removeprefix("$")] = (tally[0], tally[1])
    return found


def _bounded(path: Path, limit: int) -> bytes:
    """Return a file's content; nothing where it is larger."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else b""
