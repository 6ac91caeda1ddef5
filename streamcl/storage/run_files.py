"""Finds files of a run directory that streamcl has not written, and runs that were moved aside."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from glob import escape
from pathlib import Path

from streamcl.storage.array_files import ARRAY_FILE
from streamcl.storage.files import TEMPORARY

_STATE = rf"(manifest\.json|state\.json|arrays\.safetensors|{ARRAY_FILE.pattern})"

RUN_FILES = re.compile(
    r"config\.yaml|summary\.json|report\.html|lock"
    r"|(predictions|metrics|events|quarantine|access(\.1)?)\.jsonl"
    r"|arrivals(-\w+)?\.log"
    r"|(ledger|lineage|statistics|annotations)\.sqlite(-wal|-shm|-journal)?"
    rf"|checkpoints/checkpoint-\d+-step-\d+/{_STATE}"
    rf"|snapshots/(last_number|snapshot-\d+/{_STATE})"
    r"|samples/(index\.json|[0-9a-f]{64}\.png)"
    r"|receipts/[^/]+\.(json|dsse|tsr|html)"
    r"|audits/[^/]+\.(json|dsse)"
    r"|adapter/(adapter_config\.json|adapter_model\.safetensors|classes\.json|merged\.safetensors)"
    r"|tensorboard/events\.out\.tfevents\.[^/]+"
    r"|(spool|inbox)/[^/]+"
)
"""The paths, below a run directory, of everything that streamcl writes there."""


def unknown_files(folder: Path, skipped: Collection[str] = ()) -> list[Path]:
    """Return the files below a run directory that streamcl has not written, such as copies.

    Temporaries are left out: the next run removes them.

    skipped: names of folders that are not looked into.
    """
    found = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(TEMPORARY)]
        found += [Path(path, name) for name in names if not name.startswith(TEMPORARY)]
    return sorted(path for path in found if not RUN_FILES.fullmatch(path.relative_to(folder).as_posix()))


def earlier_runs(folder: Path) -> list[Path]:
    """Return where `--fresh` has moved earlier runs of this one's name, the oldest first."""
    folder = folder.absolute()
    beside = [path for path in folder.parent.glob(f"{escape(folder.name)}.*") if path.suffix[1:].isdecimal()]
    runs = [path for path in beside if (path / "config.yaml").is_file() or (path / "ledger.sqlite").is_file()]
    return sorted(runs, key=lambda path: int(path.suffix[1:]))
