"""Sums stored on disk by class or by subject, so that these can be forgotten without their samples.

They are in one SQLite file beside the checkpoints, not in them: each would hold all of them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streamcl.capabilities.interfaces import StatisticsPart
from streamcl.errors import ForgettingError
from streamcl.events import Sample
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.statistics.block import StatisticsBlock
from streamcl.forgetting.statistics.block_file import BlockFile, end, insert
from streamcl.protocols import State
from streamcl.storage.plain_state import Array
from streamcl.storage.sqlite import Execute

STATISTICS = "statistics.sqlite"
"""The file's name in a run directory."""

By: TypeAlias = Literal["class", "subject"]
Digest: TypeAlias = Callable[[str, str], bytes]

SAMPLES_IN_MEMORY = 512  # before they are written; 6,144 numbers each with the default backbone


@dataclass(slots=True)
class _Placed:
    """A block with its place in the file, read when it is needed."""

    samples: int
    id: int | None = None
    block: StatisticsBlock | None = None


class StatisticsStore:
    """The statistics of each class or each subject, head by head; only what waits is in memory.

    What a learner adds is folded into blocks that double in size, so a cohort of n samples has log2 n of them
    at most, and what they hold depends on the order of the stream alone, not on where commits fell.

    Args:
        path: of the SQLite file.
        by: whether a cohort is a class or a subject.
        digest: the lineage's keyed hash, since names stay out of the file.
        keep: how many checkpoints a run keeps.
    """

    def __init__(self, path: Path, by: By, *, digest: Digest, keep: int = 2) -> None:
        self.file = BlockFile(path)
        self.by, self._digest, self._keep = by, digest, keep
        self._waiting: list[tuple[bytes, int, Array, list[bytes]]] = []  # cohort, head, rows, labels
        self._count = 0

    def add(self, samples: Sequence[Sample], rows: Sequence[Array | None]) -> None:
        """Add samples that a learner added. Where memory runs out or the disk is full, nothing is added.

        Args:
            samples: n of them.
            rows: [n, D] in each of the learner's heads; None for a head from which they cannot be subtracted.
        """
        if self._count >= SAMPLES_IN_MEMORY:
            self._write()
        names = [sample.label if self.by == "class" else sample.subject for sample in samples]
        keys = [None if name is None else self._digest(self.by, name) for name in names]
        added = []
        for key in dict.fromkeys(key for key in keys if key is not None):
            mine = [i for i, each in enumerate(keys) if each == key]
            labels = [self.digest_of(samples[i].label) for i in mine]
            added += [(key, head, each[mine], labels) for head, each in enumerate(rows) if each is not None]
        self._waiting += added
        self._count += len(samples)

    def cohort_of(self, row: LineageRow) -> bytes | None:
        """Return the cohort of a sample that has passed; None where it has none."""
        return self.digest_of(row.label) if self.by == "class" else row.subject

    def digest_of(self, label: str | None) -> bytes:
        """Return the digest of a class's name."""
        return self._digest("class", str(label))

    def flush(self, offset: int) -> None:
        """Make durable what was added, as part of the state that is committed at `offset` next."""
        self._write()
        self.file.commit(offset, self._keep)

    def state_dict(self) -> State:
        """Return the moment of the commit that a checkpoint belongs to."""
        return {"moment": self.file.moment}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment. Raise ForgettingError where the file does not reach back to it."""
        self.file.restore(int(state["moment"]))
        self._waiting, self._count = [], 0

    def select(self, groups: Mapping[bytes | None, tuple[int, int]]) -> StatisticsSelection:
        """Return the statistics that a request reaches.

        groups: by cohort, how many learned samples it selects, and how many were learned at all.
        """
        self._write()
        return StatisticsSelection(self, groups)

    def _write(self) -> None:
        """Fold what waits into the file; it belongs to the next commit."""
        waiting = sorted(self._waiting, key=lambda each: each[:2])  # stable: the order of the stream stays
        with self.file.transaction() as run:
            for (cohort, head), units in groupby(waiting, key=lambda each: each[:2]):
                self._fold(run, cohort, head, [StatisticsBlock.of(*unit[2:]) for unit in units])
        self._waiting, self._count = [], 0

    def _fold(self, run: Execute, cohort: bytes, head: int, units: Sequence[StatisticsBlock]) -> None:
        stack = [_Placed(samples, number) for number, samples in self.file.present_blocks(cohort, head)]
        for unit in units:
            new = unit
            while stack and stack[-1].samples <= new.samples:
                last = stack.pop()
                new = (last.block or self.file.load(int(last.id or 0))) + new
                if last.id is not None:
                    end(run, last.id)
            stack.append(_Placed(new.samples, block=new))
        for placed in stack:
            if placed.block is not None:
                insert(run, cohort, head, placed.block)


@dataclass(slots=True)
class StatisticsSelection:
    """The stored statistics of the classes or subjects that a request touches; every change is staged.

    changed: whether a method has changed them.
    """

    _store: StatisticsStore
    _groups: Mapping[bytes | None, tuple[int, int]]
    changed: bool = False

    @property
    def complete_cohorts(self) -> list[str]:
        """The keyed hashes of the cohorts of which the request takes every sample."""
        return sorted(
            cohort.hex()
            for cohort, (chosen, total) in self._groups.items()
            if cohort is not None and chosen == total
        )

    def is_complete(self, heads: int) -> bool:
        """Return whether it takes complete cohorts only, with every sample in the sums of every head."""
        return all(
            cohort is not None
            and chosen == total
            and [self._store.file.count(cohort).get(head) for head in range(heads)] == [total] * heads
            for cohort, (chosen, total) in self._groups.items()
        )

    def parts(self, head: int, names: Sequence[str]) -> Iterator[StatisticsPart]:
        """Yield the sums of the request's cohorts in a head. names: of the classes known."""
        known = {self._store.digest_of(name): name for name in names}
        for cohort in self._groups:
            for block in self._store.file.blocks(cohort or b"", head):
                yield StatisticsPart(block.root, {known[label]: each for label, each in block.sums.items()})

    def subtract(self, samples: Sequence[LineageRow], rows: Sequence[Array]) -> None:
        """Subtract samples that were derived again.

        A cohort that turns out not to hold them as they were derived is dropped: nothing of them may stay,
        and a later request for it then needs samples again.

        Args:
            samples: n rows of the lineage.
            rows: [n, D] in each head.
        """
        self.changed = True
        keys = [self._store.cohort_of(each) for each in samples]
        labels = [self._store.digest_of(each.label) for each in samples]
        for key in dict.fromkeys(key for key in keys if key is not None):
            mine = [i for i, each in enumerate(keys) if each == key]
            try:
                for head, features in enumerate(rows):
                    self._subtract(key, head, features[mine], [labels[i] for i in mine])
            except ForgettingError:
                self._store.file.drop(key)

    def drop(self) -> None:
        """Drop the sums of every cohort that the request touches."""
        self.changed = True
        for cohort in self._groups:
            if cohort is not None:
                self._store.file.drop(cohort)

    def finish(self, heads: int) -> None:
        """End an erasure: drop what no method has subtracted, and heads that the learner lacks now."""
        if not self.changed and self._groups:
            self.drop()
        self._store.file.drop_heads(heads)
        self._store.file.accept()

    def rollback(self) -> None:
        """Discard the staged changes: the erasure failed."""
        self._store.file.rollback()

    def _subtract(self, cohort: bytes, head: int, rows: Array, labels: Sequence[bytes]) -> None:
        blocks = self._store.file.blocks(cohort, head)
        if (total := next(blocks, None)) is not None:
            total = sum(blocks, start=total)
            self._store.file.replace(cohort, head, total.without(StatisticsBlock.of(rows, labels), rows))
