"""Names what an erasure does not reach, in a run directory and beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from streamcl.forgetting.methods.protocol import DataLocation
from streamcl.forgetting.receipts.archive import AUDITS, RECEIPTS
from streamcl.sinks.jsonl import ids_in
from streamcl.storage.run_files import earlier_runs, unknown_files

UNKNOWN, EARLIER = "other files", "earlier runs"
"""The locations' names in a receipt."""


def uncovered_locations(folder: Path) -> tuple[DataLocation, ...]:
    """Return what a receipt says of files that are not streamcl's, and of runs that were moved aside.

    It says how many, since a name may name somebody. Nothing where there are none. Receipts and audits, of
    which a run may have many thousands, are not looked through each time.
    """
    found = []
    if files := unknown_files(folder, skipped=(RECEIPTS, AUDITS)):
        why = f"{len(files)} in the run directory that streamcl has not written; streamcl doctor lists them"
        found.append(DataLocation(UNKNOWN, "remains", why))
    if runs := earlier_runs(folder):
        why = f"{len(runs)} moved aside by --fresh keep all that they held; each takes requests of its own"
        found.append(DataLocation(EARLIER, "remains", why))
    return tuple(found)


def uncovered_sentences(folder: Path) -> Iterator[str]:
    """Yield what `verify` says of them, with their names."""
    for path in unknown_files(folder):
        yield f"not checked, since streamcl has not written it: {path.relative_to(folder)}"
    for path in earlier_runs(folder):
        yield f"not checked, since it is a run of its own that --fresh has moved aside: {path.name}"


def copied_ids(folder: Path) -> Iterator[tuple[int | None, str]]:
    """Yield every sample id, with its offset, in files of the folder that are copies of logs."""
    for path in unknown_files(folder):
        yield from ids_in(path)
