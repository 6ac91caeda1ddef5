"""The label of a record that has come before: a late one, a correction, or its withdrawal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """The label of an earlier record; where that record had another one, it is corrected, or withdrawn.

    It has no record of its own in the stream, so it takes no offset. Sources put labels between records.

    id: of the record. label: the class's name; None: the record has no label any more. fault: why it cannot
    be used, where it cannot; it is then counted and logged, and nothing else.
    """

    id: str
    label: str | None
    fault: str | None = None
