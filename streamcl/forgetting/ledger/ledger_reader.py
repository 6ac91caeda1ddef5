"""Reads the requests in a ledger for those who only look: no secret, no lock, nothing written."""

from __future__ import annotations

from pathlib import Path

from streamcl.forgetting.ledger.ledger import LedgerEntry
from streamcl.storage.sqlite import read_rows

COLUMNS = "position, id, status, reason, received, finished"


def newest_requests(path: Path, limit: int) -> list[LedgerEntry]:
    """Return the newest requests of a ledger in the order of arrival, without their content.

    A file that cannot be read now has none.
    """
    rows = read_rows(path, f"SELECT {COLUMNS} FROM requests ORDER BY position DESC LIMIT ?", limit)
    return [
        LedgerEntry(position, name, status, None, reason, received, finished)
        for position, name, status, reason, received, finished in reversed(rows)
    ]
