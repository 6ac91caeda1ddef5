"""The rows of the lineage that one request selects, and the names of which it leaves none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from streamcl.forgetting.lineage.lineage_row import (
    LEARNED,
    PRESENT,
    REJECTED,
    ROW_COLUMNS,
    LineageRow,
    row_of,
)
from streamcl.storage.sqlite import SqliteFile

CHUNK = 256  # samples that are retrieved together


@dataclass(frozen=True, slots=True)
class EmptiedNames:
    """The names of which a request leaves no sample, as if none had ever come.

    classes: no sample of them is left. unlearned: classes of which no learned sample is left. domains: keyed
    hashes of domains of which no sample is left.
    """

    classes: tuple[str, ...]
    unlearned: tuple[str, ...]
    domains: frozenset[bytes]


class Selection:
    """The rows of one request, by their offsets in a table in memory, some 10 bytes each; `close` drops it.

    learned, passed: how many samples were learned, and how many have passed, learned or not. count: these,
    and records that were rejected.
    """

    _numbers = itertools.count()

    def __init__(self, file: SqliteFile, where: str, values: Sequence[Any]) -> None:
        self._file, self._table = file, f"temp.selection_{next(self._numbers)}"
        file.query(f"CREATE TABLE {self._table} (offset INTEGER PRIMARY KEY)")
        file.query(
            f"INSERT INTO {self._table} SELECT offset FROM samples WHERE ({where}) AND {PRESENT}", *values
        )
        self._rows = f"{self._table} CROSS JOIN samples USING (offset)"  # in this order, never all samples
        counted = (
            f"SELECT COUNT(*), COUNT(*) FILTER (WHERE NOT learned & {REJECTED}), "
            f"COUNT(*) FILTER (WHERE learned & {LEARNED}) FROM {self._rows}"
        )
        self.count, self.passed, self.learned = map(int, file.query(counted)[0])

    def chunks(self, *, learned: bool, size: int = CHUNK) -> Iterator[list[LineageRow]]:
        """Yield the rows in the order of the stream; `learned`: those of samples that were learned only."""
        only, after = f" AND learned & {LEARNED}" if learned else "", -1
        while rows := self._file.query(
            f"SELECT {ROW_COLUMNS} FROM {self._rows} WHERE offset > ?{only} ORDER BY offset LIMIT ?",
            after,
            size,
        ):
            after = rows[-1][0]
            yield [row_of(row) for row in rows]

    def cohorts(self, by: Literal["class", "subject"]) -> dict[bytes | None, tuple[int, int]]:
        """Return, by class or by subject, how many learned samples are selected, and how many there are.

        A keyed hash names each that the request selects any of; None those without a subject.
        """
        column = "label" if by == "class" else "subject"
        chosen = f"SELECT {column}, COUNT(*) FROM {self._rows} WHERE learned & {LEARNED} GROUP BY {column}"
        total = f"SELECT COUNT(*) FROM samples WHERE learned & {LEARNED} AND {column} IS ? AND {PRESENT}"
        return {
            self._file.digest("class", name) if by == "class" else name: (
                count,
                self._file.query(total, name)[0][0],
            )
            for name, count in self._file.query(chosen)
        }

    @cached_property
    def emptied(self) -> EmptiedNames:
        """The classes and domains of which all samples are selected."""
        return EmptiedNames(
            tuple(self._emptied("label")),
            tuple(self._emptied("label", f" AND learned & {LEARNED}")),
            frozenset(self._emptied("domain")),
        )

    def _emptied(self, column: str, condition: str = "") -> Iterator[Any]:
        """Yield the column's values of which every row that meets the condition is selected."""
        chosen = f"SELECT DISTINCT {column} FROM {self._rows} WHERE {column} IS NOT NULL{condition}"
        left = (
            f"SELECT 1 FROM samples WHERE {column} = ?{condition} AND {PRESENT} "
            f"AND offset NOT IN (SELECT offset FROM {self._table}) LIMIT 1"
        )
        yield from (value for (value,) in self._file.query(chosen) if not self._file.query(left, value))

    def hide(self) -> None:
        """Let no later selection have these rows, as if they were erased, until the lineage erases rows."""
        self._file.query(f"INSERT OR IGNORE INTO temp.erased SELECT offset FROM {self._table}")

    def close(self) -> None:
        """Drop the table."""
        self._file.query(f"DROP TABLE IF EXISTS {self._table}")
