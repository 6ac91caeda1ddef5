"""The label of a record that has come before: a late one, or a correction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """The label of an earlier record; where that record had another one, it is corrected.

    It has no record of its own in the stream, so it takes no offset. Sources put labels between records.

    id: of the record. label: the class's name. fault: why it cannot be used, where it cannot; it is then
    counted and logged, and nothing else.
    """

    id: str
    label: str
    fault: str | None = None
