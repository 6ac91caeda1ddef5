"""Removes what a finished run derived from its records: it would name what was erased."""

from __future__ import annotations

from pathlib import Path

from streamcl.storage import files
from streamcl.storage.files import Disk

DERIVED = ("summary.json", "report.html", "adapter")
"""Made from the run when it ends; removed with an erasure, and made anew at the next end."""


def remove_derived(folder: Path, *, disk: Disk = files.DISK) -> list[str]:
    """Remove summary, report and exported adapter from a run directory; return their names."""
    found = [name for name in DERIVED if (folder / name).exists()]
    for name in found:
        files.remove(folder / name, disk=disk)
    return found
