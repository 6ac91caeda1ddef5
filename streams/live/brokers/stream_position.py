"""A position in a Redis stream, and whether entries after it are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

BEGINNING = "0-0"


class StreamFacts(NamedTuple):
    """The figures of a stream, from XINFO STREAM.

    first: id of the first entry that is left; None where there is none. last: id of the newest entry ever.
    added: entries ever added. removed: of these, those that are trimmed or deleted. deleted: the greatest id
    that was deleted by itself, by XDEL.
    """

    first: str | None
    last: str
    added: int
    removed: int
    deleted: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> StreamFacts:
        """Return the facts in an answer of XINFO STREAM. Raise KeyError where Redis is older than 7."""
        added, length = int(info["entries-added"]), int(info["length"])
        first = as_text(info["recorded-first-entry-id"]) if length else None
        last, deleted = as_text(info["last-generated-id"]), as_text(info["max-deleted-entry-id"])
        return cls(first, last, added, added - length, deleted)


class StreamPosition(NamedTuple):
    """A place after an entry of a stream.

    id: of the last entry read. passed: entries up to there that were ever added, whoever removed them.
    deleted: the greatest id deleted by XDEL that is known and accepted.
    """

    id: str = BEGINNING
    passed: int = 0
    deleted: str = BEGINNING

    @classmethod
    def before_first(cls, facts: StreamFacts | None) -> StreamPosition:
        """Return the position before the first entry that is left; what was removed is not missed."""
        return cls() if facts is None else cls(BEGINNING, facts.removed, facts.deleted)

    def after(self, entry: str) -> StreamPosition:
        """Return the position after the next entry, which has this id."""
        return self._replace(id=entry, passed=self.passed + 1)

    def gap(self, facts: StreamFacts | None) -> str | None:
        """Return which entries after the position are gone, in words; None where none is.

        facts: None where there is no such stream.
        """
        if facts is None:
            return f"it is gone, and {self.passed} entries of it were read" if self.passed else None
        none_left = facts.first is None or order(facts.first) > order(self.id)
        lost = facts.removed - self.passed if none_left else 0
        if order(facts.last) < order(self.id) or facts.added < self.passed or lost < 0:
            return (
                f"{self.passed} entries up to {self.id} were read, and now it has had {facts.added} up to "
                f"{facts.last}: it was made anew, or the broker has lost entries"
            )
        if none_left:
            left = "none is left" if facts.first is None else f"the first that is left is {facts.first}"
            gone = "1 entry was" if lost == 1 else f"{lost} entries were"
            return f"{gone} removed after {self.id}, and never read; {left}" if lost else None
        if order(facts.deleted) > max(order(self.id), order(self.deleted)):
            return f"entry {facts.deleted}, and maybe others after {self.id}, was deleted before it was read"
        return None

    def beyond(self, facts: StreamFacts | None) -> StreamPosition:
        """Return the position from which to read on where the gap is accepted."""
        if facts is None:
            return StreamPosition()
        inside = facts.first is not None and order(facts.first) <= order(self.id)
        passed = min(self.passed, facts.added) if inside else facts.removed
        return StreamPosition(self.id, passed, facts.deleted)


def order(entry: str) -> tuple[int, int]:
    """Return what orders ids of entries.

    >>> order("9-3") < order("10-0")
    True
    """
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)


def next_id(entry: str) -> str:
    """Return the smallest id after an entry's.

    >>> next_id("10-3")
    '10-4'
    """
    milliseconds, number = order(entry)
    return f"{milliseconds}-{number + 1}"


def is_entry_id(name: str) -> bool:
    """Return whether it is an entry's id in the form in which Redis gives it.

    >>> is_entry_id("1526919030474-55"), is_entry_id("007-1"), is_entry_id("5")
    (True, False, False)
    """
    parts = name.split("-")
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) <= 20]
    return len(parts) == 2 and "-".join(map(str, numbers)) == name and max(numbers) < 2**64


def as_text(value: bytes | str) -> str:
    """Return an id or a key as text."""
    return value if isinstance(value, str) else value.decode()
