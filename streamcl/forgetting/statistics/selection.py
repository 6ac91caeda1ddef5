"""The part of the kept statistics that one request reaches: whole cohorts, or samples of some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from streamcl.capabilities.interfaces import StatisticsPart
from streamcl.errors import ForgettingError
from streamcl.forgetting.methods.protocol import LineageRow
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.storage.plain_state import Array


class CohortFile(Protocol):
    """Kept sums by cohort (see streamcl.forgetting.statistics.store)."""

    @property
    def file(self) -> BlockFile:
        """Where they are."""

    def cohort_of(self, trace: LineageRow) -> bytes | None:
        """Return the cohort of a sample that has passed; None where it has none."""

    def digest_of(self, label: str | None) -> bytes:
        """Return the digest of a class's name."""

    def take_out(self, cohort: bytes, head: int, rows: Array, labels: Sequence[bytes]) -> None:
        """Take rows [n, D] out of a cohort's sums, if they are kept; staged."""


@dataclass(slots=True)
class StatisticsSelection:
    """The kept statistics of a request's cohorts (see methods.protocol.StatisticsView)."""

    _kept: CohortFile
    _groups: Mapping[bytes | None, tuple[int, int]]
    touched: bool = False

    @property
    def gone(self) -> list[str]:
        """The salted hashes of the cohorts that the request takes whole."""
        return sorted(
            cohort.hex()
            for cohort, (chosen, total) in self._groups.items()
            if cohort is not None and chosen == total
        )

    def whole(self, heads: int) -> bool:
        """Whether the request takes whole cohorts, and every sample of each is in the sums of every head."""
        return all(
            cohort is not None
            and chosen == total
            and [self._kept.file.count(cohort).get(head) for head in range(heads)] == [total] * heads
            for cohort, (chosen, total) in self._groups.items()
        )

    def parts(self, head: int, names: Sequence[str]) -> Iterator[StatisticsPart]:
        """Return the sums of the request's cohorts in a head, part by part. names: of the classes known."""
        known = {self._kept.digest_of(name): name for name in names}
        for cohort in self._groups:
            for block in self._kept.file.blocks(cohort or b"", head):
                yield StatisticsPart(block.root, {known[label]: each for label, each in block.sums.items()})

    def take_out(self, traces: Sequence[LineageRow], rows: Sequence[Array]) -> None:
        """Take samples that were derived again out of the sums of their cohorts, staged.

        A cohort that turns out not to hold them as they were derived is given up whole: nothing of them may
        stay, and a later request for it then needs samples again.
        """
        self.touched = True
        keys = [self._kept.cohort_of(trace) for trace in traces]
        labels = [self._kept.digest_of(trace.label) for trace in traces]
        for key in dict.fromkeys(key for key in keys if key is not None):
            mine = [i for i, each in enumerate(keys) if each == key]
            try:
                for head, features in enumerate(rows):
                    self._kept.take_out(key, head, features[mine], [labels[i] for i in mine])
            except ForgettingError:
                self._kept.file.drop(key)

    def drop(self) -> None:
        """Give up the sums of every cohort that the request touches, staged."""
        self.touched = True
        for cohort in self._groups:
            if cohort is not None:
                self._kept.file.drop(cohort)

    def finish(self, heads: int) -> None:
        """Stage the end of an erasure: drop what no method has subtracted, and heads that are gone."""
        if not self.touched and self._groups:
            self.drop()
        self._kept.file.drop_heads(heads)
        self._kept.file.settle()

    def undo(self) -> None:
        """Discard the staged changes: the erasure failed."""
        self._kept.file.undo()
