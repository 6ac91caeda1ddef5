"""Sums kept on disk by class or by subject, so that these can be forgotten without their samples.

They are written beside the checkpoints, in one SQLite file, and not into them: each would carry all of them
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streamcl.events import Sample
from streamcl.forgetting.methods.protocol import LineageRow
from streamcl.forgetting.statistics.block import StatisticsBlock
from streamcl.forgetting.statistics.block_file import BlockFile, end, insert
from streamcl.forgetting.statistics.selection import StatisticsSelection
from streamcl.protocols import State
from streamcl.storage.plain_state import Array
from streamcl.storage.sqlite import Execute

STATISTICS = "statistics.sqlite"
"""The file's name in a run directory."""

By: TypeAlias = Literal["class", "subject"]
Digest: TypeAlias = Callable[[str, str], bytes]

WAITING = 512  # samples in memory before they are written; 6,144 numbers each with the default backbone


@dataclass(slots=True)
class _Placed:
    """A block with its place in the file, read when it is needed."""

    samples: int
    id: int | None = None
    block: StatisticsBlock | None = None


class StatisticsStore:
    """The statistics of each class or each subject, head by head; only what waits is in memory.

    by: what a cohort is. digest: the lineage's salted hash, since names stay out of the file. keep: how many
    checkpoints a run keeps.

    What a learner adds is folded into blocks that double in size, so a cohort of n samples has log2 n of them
    at most, and what they hold depends on the order of the stream alone, not on where commits fell.
    """

    def __init__(self, path: Path, by: By, *, digest: Digest, keep: int = 2) -> None:
        self.file = BlockFile(path)
        self.by, self._digest, self._keep = by, digest, keep
        self._waiting: list[tuple[bytes, int, Array, list[bytes]]] = []
        self._count = 0

    def add(self, samples: Sequence[Sample], rows: Sequence[Array | None]) -> None:
        """Remember what a learner added: the samples, and their rows [n, D] in each of its heads.

        All of it or, where memory runs out or the disk is full, nothing.
        """
        if self._count >= WAITING:
            self._write()
        names = [sample.label if self.by == "class" else sample.subject for sample in samples]
        keys = [None if name is None else self._digest(self.by, name) for name in names]
        taken = []
        for key in dict.fromkeys(key for key in keys if key is not None):
            mine = [i for i, each in enumerate(keys) if each == key]
            labels = [self.digest_of(samples[i].label) for i in mine]
            taken += [(key, head, each[mine], labels) for head, each in enumerate(rows) if each is not None]
        self._waiting += taken
        self._count += len(samples)

    def cohort_of(self, trace: LineageRow) -> bytes | None:
        """Return the cohort of a sample that has passed; None where it has none."""
        return self.digest_of(trace.label) if self.by == "class" else trace.subject

    def digest_of(self, label: str | None) -> bytes:
        """Return the digest of a class's name."""
        return self._digest("class", str(label))

    def flush(self, offset: int) -> None:
        """Make durable what was taken, as part of the state that is committed at `offset` next."""
        self._write()
        self.file.commit(offset, self._keep)

    def state_dict(self) -> State:
        """Return the moment of the commit that a checkpoint belongs to."""
        return {"moment": self.file.moment}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment. Raise ForgettingError where the file does not reach back to it."""
        self.file.go_back(int(state["moment"]))
        self._give_up()

    def begin(self) -> None:
        """Start with nothing."""
        self.file.go_back(0)
        self._give_up()

    def scope(self, groups: Mapping[bytes | None, tuple[int, int]]) -> StatisticsSelection:
        """Return the statistics that a request reaches.

        groups: by cohort, how many learned samples it selects, and how many were learned at all.
        """
        self._write()
        return StatisticsSelection(self, groups)

    def take_out(self, cohort: bytes, head: int, rows: Array, labels: Sequence[bytes]) -> None:
        """Take rows [n, D] out of a cohort's sums, if they are kept; staged."""
        whole: StatisticsBlock | None = None
        for block in self.file.blocks(cohort, head):
            whole = block if whole is None else whole.joined(block)
        if whole is not None:
            self.file.replace(cohort, head, whole.without(StatisticsBlock.of(rows, labels), rows))

    def seal(self) -> None:
        """After an erasure's commit, when no older checkpoint is left: overwrite what only those needed."""
        self.file.seal()

    def close(self) -> None:
        """Close the file; harmless twice. What waits is given up."""
        self.file.close()

    def _write(self) -> None:
        """Fold what waits into the file; it belongs to the next commit."""
        waiting = sorted(self._waiting, key=lambda each: each[:2])  # stable: the order of the stream stays
        with self.file.transaction() as run:
            for (cohort, head), units in groupby(waiting, key=lambda each: each[:2]):
                self._fold(
                    run, cohort, head, [StatisticsBlock.of(rows, labels) for _, _, rows, labels in units]
                )
        self._give_up()

    def _give_up(self) -> None:
        """Wait for nothing any more."""
        self._waiting.clear()
        self._count = 0

    def _fold(self, run: Execute, cohort: bytes, head: int, units: Sequence[StatisticsBlock]) -> None:
        stack = [_Placed(samples, number) for number, samples in self.file.standing(cohort, head)]
        for unit in units:
            new = unit
            while stack and stack[-1].samples <= new.samples:
                last = stack.pop()
                new = (last.block or self.file.load(int(last.id or 0))).joined(new)
                if last.id is not None:
                    end(run, last.id)
            stack.append(_Placed(new.samples, block=new))
        for placed in stack:
            if placed.block is not None:
                insert(run, cohort, head, placed.block)
