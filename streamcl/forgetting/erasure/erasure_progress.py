"""The counts of an erasure on disk: durable before what they count is gone, so that no crash loses one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamcl.forgetting.ledger.ledger import Ledger

PROGRESS = "erasure"
"""The name under which the ledger remembers them."""

LOGGED = "log "
"""Begins the names of counts of log records."""


class ErasureProgress:
    """Counts by name, in the ledger; those of the same erasure before a crash are there again.

    Args:
        ledger: remembers them. They hold no names but those of requests.
        requests: the ids of the requests that are erased together.
    """

    def __init__(self, ledger: Ledger, requests: Sequence[str]) -> None:
        self._ledger, self._requests = ledger, sorted(requests)
        known = ledger.recall(PROGRESS) or {}
        self._values: dict[str, Any] = known["values"] if known.get("requests") == self._requests else {}

    @property
    def has_begun(self) -> bool:
        """Whether there are any."""
        return bool(self._values)

    def begin(self, values: dict[str, Any]) -> None:
        """Remember the values by their names, which JSON must have; they are durable on return."""
        self._values = values
        self._save()

    def note(self, name: str, count: int) -> int:
        """Remember a count, durable on return, and return it; a larger one that was noted before stays."""
        if count > self._values.get(name, 0):
            self._values[name] = count
            self._save()
        return int(self._values.get(name, 0))

    def note_log(self, name: str, count: int) -> int:
        """Like `note`, for the records of a log that are to be emptied."""
        return self.note(LOGGED + name, count)

    @property
    def logged(self) -> int:
        """The sum of the counts of logs."""
        return sum(count for name, count in self._values.items() if name.startswith(LOGGED))

    def __getitem__(self, name: str) -> Any:
        """Return the value of a name."""
        return self._values[name]

    def _save(self) -> None:
        self._ledger.remember(PROGRESS, {"requests": self._requests, "values": self._values})
