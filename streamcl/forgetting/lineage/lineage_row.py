"""One row of the lineage: a sample that has passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEARNED, PRIVATE, REJECTED = 1, 2, 4  # bits of the column `learned`
ROW_COLUMNS = "offset, id, label, learned, segment, content, subject, features"
"""The columns of the table of samples that `row_of` reads."""

PRESENT = "offset NOT IN (SELECT offset FROM temp.erased)"
"""The condition of rows that no erasure has taken which is not finalised yet (see `Selection.hide`)."""


@dataclass(frozen=True, slots=True)
class LineageRow:
    """One sample that has passed, as the lineage remembers it.

    offset: its place in the stream, unlike its id never twice the same. label: that it was learned with.
    learned: False where it was only predicted. segment: shifts found before it. content: a keyed hash of
    the pixels. private: whether its privacy was "user". subject: a keyed hash too. features: its trace, or
    projections of the rows that it was learned with (see `feature_binding`), where the learner has any.
    """

    offset: int
    id: str
    label: str | None
    learned: bool
    segment: int
    content: bytes
    private: bool = False
    subject: bytes | None = None
    features: bytes | None = None


def row_of(row: tuple[Any, ...]) -> LineageRow:
    """Return the row of the values of ROW_COLUMNS."""
    offset, name, label, bits, segment, content, subject, features = row
    learned, private = bool(bits & LEARNED), bool(bits & PRIVATE)
    return LineageRow(offset, name, label, learned, segment, content, private, subject, features)
