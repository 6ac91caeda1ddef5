"""Sums kept on disk by class or by subject, so that these can be forgotten without their samples.

They are written beside the checkpoints, in one SQLite file, and not into them: each would carry all of them
anew. Instead each block says between which commits it belongs to the run's state, and a checkpoint holds the
moment of its commit. A run that goes back to an older checkpoint goes back to the blocks of that moment; what
no checkpoint needs any more is deleted and overwritten by zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from streamcl.errors import ForgettingError
from streamcl.events import Sample
from streamcl.forgetting.protocol import Part, Trace
from streamcl.forgetting.roots import Array, packed, root, unpacked, without
from streamcl.ledger_file import LedgerFile, Run
from streamcl.protocols import State

STATISTICS = "statistics.sqlite"
"""The file's name in a run directory."""

By: TypeAlias = Literal["class", "subject"]
Digest: TypeAlias = Callable[[str, str], bytes]

WAITING = 512  # samples in memory before they are written; 6,144 numbers each with the default backbone
OPEN = 1 << 62  # the moment of what no commit has taken up yet
STAGED = OPEN + 1  # of what an erasure that may still fail has changed
SHIFT = 8  # a moment is the offset of the commit, so shifted, and counts on where commits share an offset
LABEL = np.dtype([("digest", "S16"), ("count", "<i8")])

SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE commits (moment INTEGER PRIMARY KEY)",
    """CREATE TABLE blocks (
        id INTEGER PRIMARY KEY,
        cohort BLOB NOT NULL,
        head INTEGER NOT NULL,
        born INTEGER NOT NULL,
        died INTEGER,
        samples INTEGER NOT NULL,
        ranks INTEGER NOT NULL,
        width INTEGER NOT NULL,
        seal BLOB NOT NULL,
        labels BLOB NOT NULL,
        sums BLOB NOT NULL,
        root BLOB NOT NULL
    )""",
    "CREATE INDEX by_cohort ON blocks(cohort, head)",
    "CREATE INDEX by_born ON blocks(born)",
    "CREATE INDEX by_died ON blocks(died)",
)


@dataclass(frozen=True, slots=True)
class Block:
    """The sums of some samples of one cohort in one head: R [r, D], and by class a count and Q [D]."""

    samples: int
    root: Array
    sums: Mapping[bytes, tuple[int, Array]]

    @classmethod
    def of(cls, rows: Array, labels: Sequence[bytes]) -> Block:
        """The block of rows [n, D] with the digests of their classes."""
        sums = {
            label: (labels.count(label), rows[[each == label for each in labels]].sum(axis=0))
            for label in dict.fromkeys(labels)
        }
        return cls(len(rows), root(rows), sums)

    def joined(self, other: Block) -> Block:
        """Both as one."""
        sums = dict(self.sums)
        for label, (count, total) in other.sums.items():
            here, there = sums.get(label, (0, np.zeros_like(total)))
            sums[label] = (here + count, there + total)
        return Block(self.samples + other.samples, root(np.concatenate([self.root, other.root])), sums)

    def without(self, other: Block, rows: Array) -> Block:
        """What is left when `other`, the block of `rows`, is taken out. Raises ForgettingError."""
        left = self.samples - other.samples
        sums = dict(self.sums)
        for label, (count, total) in other.sums.items():
            here, there = sums.pop(label, (0, total))
            if here < count:
                raise ForgettingError("more samples of a class are to be taken out than were kept")
            if here > count:
                sums[label] = (here - count, there - total)
        return Block(left, without(self.root, rows, left), sums)


@dataclass(slots=True)
class _Placed:
    """A block with its place in the file, read when it is needed."""

    samples: int
    id: int | None = None
    block: Block | None = None


class Kept:
    """The statistics of each class or each subject, head by head; only what waits is in memory.

    by: what a cohort is. digest: the lineage's salted hash, since names stay out of the file. keep: how many
    checkpoints a run keeps.

    What a learner adds is folded into blocks that double in size, so a cohort of n samples has log2 n of them
    at most, and what they hold depends on the order of the stream alone, not on where commits fell.
    """

    def __init__(self, path: Path, by: By, *, digest: Digest, keep: int = 2) -> None:
        self._file = LedgerFile(path, patience=10.0, schema=SCHEMA)
        self.by, self._digest, self._keep = by, digest, keep
        self._waiting: list[tuple[bytes, int, Array, list[bytes]]] = []
        self._count = 0
        self._moment = 0

    def take(self, samples: Sequence[Sample], rows: Sequence[Array | None]) -> None:
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

    def cohort_of(self, trace: Trace) -> bytes | None:
        """The cohort of a sample that has passed; None where it has none."""
        return self.digest_of(trace.label) if self.by == "class" else trace.subject

    def flush(self, offset: int) -> None:
        """Make durable what was taken, as part of the state that is committed at `offset` next."""
        self._write()
        changed = "SELECT 1 FROM blocks WHERE born = ? OR died = ? LIMIT 1"
        if not self._file.query(changed, OPEN, OPEN):
            return  # the same moment serves this commit too
        self._moment = max(offset << SHIFT, self._moment + 1)
        with self._file.transaction() as run:
            run("UPDATE blocks SET born = ? WHERE born = ?", (self._moment, OPEN))
            run("UPDATE blocks SET died = ? WHERE died = ?", (self._moment, OPEN))
            run("INSERT INTO commits VALUES (?)", (self._moment,))
            recent = run("SELECT moment FROM commits ORDER BY moment DESC LIMIT ?", (self._keep + 2,))
            oldest = recent.fetchall()[-1][0]  # the newest is to be written, the one before it may yet be
            run("DELETE FROM blocks WHERE died <= ?", (oldest,))
            run("DELETE FROM commits WHERE moment < ?", (oldest,))

    def state_dict(self) -> State:
        """The moment of the commit that a checkpoint belongs to."""
        return {"moment": self._moment}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to that moment. Raises ForgettingError where the file does not reach back to it."""
        self._moment = int(state["moment"])
        known = self._file.query("SELECT 1 FROM commits WHERE moment = ?", self._moment)
        if self._moment and not known:
            raise ForgettingError(
                f"{self._file.path} does not know the checkpoint: it is older, or has gone on without it",
                hint="restore it together with the checkpoints, or start over with --fresh",
            )
        self._rewind()

    def begin(self) -> None:
        """Start with nothing."""
        self._moment = 0
        self._rewind()

    def _rewind(self) -> None:
        self._waiting.clear()
        self._count = 0
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born > ?", (self._moment,))
            run("UPDATE blocks SET died = NULL WHERE died > ?", (self._moment,))
            run("DELETE FROM commits WHERE moment > ?", (self._moment,))

    def scope(self, groups: Mapping[bytes | None, tuple[int, int]]) -> KeptScope:
        """What a request reaches here.

        groups: by cohort, how many learned samples it selects, and how many were learned at all.
        """
        self._write()
        return KeptScope(self, groups)

    def count(self, cohort: bytes) -> dict[int, int]:
        """How many samples of a cohort the sums of each head hold."""
        rows = self._file.query(
            "SELECT head, SUM(samples) FROM blocks WHERE cohort = ? AND died IS NULL GROUP BY head", cohort
        )
        return {int(head): int(samples) for head, samples in rows}

    def blocks(self, cohort: bytes, head: int) -> Iterator[Block]:
        """The sums of a cohort, block by block. Raises ForgettingError for one that is damaged."""
        for number, _ in self._standing(cohort, head):
            yield self._load(number)

    def take_out(self, cohort: bytes, head: int, rows: Array, labels: Sequence[bytes]) -> None:
        """Take rows [n, D] out of a cohort's sums, if they are kept; staged."""
        whole: Block | None = None
        for block in self.blocks(cohort, head):
            whole = block if whole is None else whole.joined(block)
        if whole is None:
            return
        left = whole.without(Block.of(rows, labels), rows)
        ended = [(STAGED, number) for number, _ in self._standing(cohort, head)]
        with self._file.transaction() as run:
            for each in ended:
                run("UPDATE blocks SET died = ? WHERE id = ?", each)
            if left.samples:
                _insert(run, cohort, head, left, STAGED)

    def drop(self, cohort: bytes) -> None:
        """Give up the sums of a cohort; staged."""
        with self._file.transaction() as run:
            run("UPDATE blocks SET died = ? WHERE died IS NULL AND cohort = ?", (STAGED, cohort))

    def drop_heads(self, first: int) -> None:
        """Give up the sums of the heads from `first` on; staged."""
        with self._file.transaction() as run:
            run("UPDATE blocks SET died = ? WHERE died IS NULL AND head >= ?", (STAGED, first))

    def settle(self) -> None:
        """What was staged belongs to the next commit."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born = ? AND died = ?", (STAGED, STAGED))
            run("UPDATE blocks SET born = ? WHERE born = ?", (OPEN, STAGED))
            run("UPDATE blocks SET died = ? WHERE died = ?", (OPEN, STAGED))

    def undo(self) -> None:
        """What was staged is as it was before."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born = ?", (STAGED,))
            run("UPDATE blocks SET died = NULL WHERE died = ?", (STAGED,))

    def seal(self) -> None:
        """After an erasure's commit, when no older checkpoint is left: overwrite what only those needed."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE died <= ?", (self._moment,))
            run("DELETE FROM commits WHERE moment < ?", (self._moment,))
        if not self._file.empty_journal():
            raise ForgettingError(
                f"{self._file.path} is in use, so its journal still holds erased sums",
                hint="let go of it; the erasure goes on when the run is opened again",
            )

    def examine(self) -> tuple[int, int, int]:
        """How many cohorts, blocks and bytes there are. Raises ForgettingError where one is damaged."""
        cohorts, blocks, size = set(), 0, 0
        for number, cohort, length in self._file.query(
            "SELECT id, cohort, LENGTH(root) + LENGTH(sums) FROM blocks WHERE died IS NULL ORDER BY id"
        ):
            self._load(number)
            cohorts.add(cohort)
            blocks, size = blocks + 1, size + length
        return len(cohorts), blocks, size

    def cohorts_by_head(self) -> dict[int, int]:
        """How many classes or subjects each head has sums of."""
        rows = self._file.query(
            "SELECT head, COUNT(DISTINCT cohort) FROM blocks WHERE died IS NULL GROUP BY head"
        )
        return {int(head): int(cohorts) for head, cohorts in rows}

    def close(self) -> None:
        """Close the file; harmless twice. What waits is given up."""
        self._file.close()

    def digest_of(self, label: str | None) -> bytes:
        """The digest of a class's name."""
        return self._digest("class", str(label))

    def _write(self) -> None:
        """Fold what waits into the file; it belongs to the next commit."""
        waiting = sorted(self._waiting, key=lambda each: each[:2])  # stable: the order of the stream stays
        with self._file.transaction() as run:
            for (cohort, head), units in groupby(waiting, key=lambda each: each[:2]):
                self._fold(run, cohort, head, [Block.of(rows, labels) for _, _, rows, labels in units])
        self._waiting.clear()
        self._count = 0

    def _fold(self, run: Run, cohort: bytes, head: int, units: Sequence[Block]) -> None:
        stack = [_Placed(samples, number) for number, samples in self._standing(cohort, head)]
        for unit in units:
            new = unit
            while stack and stack[-1].samples <= new.samples:
                last = stack.pop()
                new = (last.block or self._load(int(last.id or 0))).joined(new)
                if last.id is not None:
                    run("DELETE FROM blocks WHERE id = ? AND born = ?", (last.id, OPEN))
                    run("UPDATE blocks SET died = ? WHERE id = ?", (OPEN, last.id))
            stack.append(_Placed(new.samples, block=new))
        for placed in stack:
            if placed.block is not None:
                _insert(run, cohort, head, placed.block, OPEN)

    def _standing(self, cohort: bytes, head: int) -> list[tuple[int, int]]:
        """The numbers of a cohort's blocks, and the samples of each, largest and oldest first."""
        return [
            (number, samples)
            for number, samples in self._file.query(
                "SELECT id, samples FROM blocks WHERE cohort = ? AND head = ? AND died IS NULL ORDER BY id",
                *(cohort, head),
            )
        ]

    def _load(self, number: int) -> Block:
        ((cohort, head, samples, ranks, width, seal, labels, sums, data),) = self._file.query(
            "SELECT cohort, head, samples, ranks, width, seal, labels, sums, root FROM blocks WHERE id = ?",
            number,
        )
        if _seal(cohort, head, samples, ranks, width, labels, sums, data) != seal:
            raise self._file.damage("a block of statistics is not what was written")
        totals = np.frombuffer(sums, "<f8").reshape(-1, width).copy()
        entries = np.frombuffer(labels, LABEL)
        named = {
            bytes(each["digest"]).ljust(16, b"\0"): (int(each["count"]), total)
            for each, total in zip(entries, totals, strict=True)
        }
        return Block(samples, unpacked(data, ranks, width), named)


@dataclass(slots=True)
class KeptScope:
    """What a request reaches of the kept sums (see streamcl.forgetting.protocol.Sums)."""

    _kept: Kept
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
            and [self._kept.count(cohort).get(head) for head in range(heads)] == [total] * heads
            for cohort, (chosen, total) in self._groups.items()
        )

    def parts(self, head: int, names: Sequence[str]) -> Iterator[Part]:
        """The sums of the request's cohorts in a head, part by part. names: of the classes known."""
        known = {self._kept.digest_of(name): name for name in names}
        for cohort in self._groups:
            for block in self._kept.blocks(cohort or b"", head):
                yield Part(block.root, {known[label]: each for label, each in block.sums.items()})

    def take_out(self, traces: Sequence[Trace], rows: Sequence[Array]) -> None:
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
                self._kept.drop(key)

    def drop(self) -> None:
        """Give up the sums of every cohort that the request touches, staged."""
        self.touched = True
        for cohort in self._groups:
            if cohort is not None:
                self._kept.drop(cohort)

    def finish(self, heads: int) -> None:
        """The erasure came about: what no method has taken out goes now, and heads that are gone go too."""
        if not self.touched and self._groups:
            self.drop()
        self._kept.drop_heads(heads)
        self._kept.settle()

    def undo(self) -> None:
        """The erasure failed."""
        self._kept.undo()


def kept_cohorts(path: Path) -> set[str]:
    """The salted hashes of those whose sums a file holds, older checkpoints' included."""
    file = LedgerFile(path, patience=10.0, schema=SCHEMA)
    try:
        return {bytes(row[0]).hex() for row in file.query("SELECT DISTINCT cohort FROM blocks")}
    finally:
        file.close()


def examined(path: Path) -> tuple[int, int, int]:
    """How many cohorts, blocks and bytes of sums a file holds, each looked at. Raises ForgettingError."""
    kept = Kept(path, "class", digest=lambda *_: b"")
    try:
        return kept.examine()
    finally:
        kept.close()


def _insert(run: Run, cohort: bytes, head: int, block: Block, born: int) -> None:
    labels = np.array([(label, count) for label, (count, _) in block.sums.items()], LABEL).tobytes()
    sums = b"".join(total.astype("<f8", copy=False).tobytes() for _, total in block.sums.values())
    ranks, width = block.root.shape
    data = packed(block.root)
    seal = _seal(cohort, head, block.samples, ranks, width, labels, sums, data)
    values = (cohort, head, born, block.samples, ranks, width, seal, labels, sums, data)
    run(
        "INSERT INTO blocks (cohort, head, born, samples, ranks, width, seal, labels, sums, root)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def _seal(cohort: bytes, *facts: Any) -> bytes:
    """A hash of a block by which damage is noticed."""
    found = hashlib.blake2b(cohort, digest_size=16)
    for fact in facts:
        found.update(fact if isinstance(fact, bytes) else f"{fact};".encode())
    return found.digest()
