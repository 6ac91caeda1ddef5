"""The SQLite file of stored blocks: each says between which commits it belongs to the run's state.

A checkpoint holds the moment of its commit. A run that goes back to an older checkpoint goes back to the
blocks of that moment; what no checkpoint needs any more is deleted and overwritten by zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from streamcl.errors import ForgettingError
from streamcl.forgetting.statistics.block import StatisticsBlock
from streamcl.storage.sqlite import Execute, SqliteFile

OPEN = 1 << 62  # the moment of what no commit has taken up yet
STAGED = OPEN + 1  # of what an erasure that may still fail has changed
SHIFT = 8  # a moment is the offset of the commit, so shifted, and counts on where commits share an offset

BLOCK_SCHEMA = (
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
        checksum BLOB NOT NULL,
        labels BLOB NOT NULL,
        sums BLOB NOT NULL,
        root BLOB NOT NULL
    )""",
    "CREATE INDEX by_cohort ON blocks(cohort, head)",
    "CREATE INDEX by_born ON blocks(born)",
    "CREATE INDEX by_died ON blocks(died)",
)


BLOCK_COLUMNS = "cohort, head, samples, ranks, width, checksum, labels, sums, root"


class BlockFile:
    """Blocks by cohort and head, those of the moment standing; a cohort is the digest of a name.

    Every method raises ForgettingError where the file is damaged or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, timeout=10.0, schema=BLOCK_SCHEMA)
        self.moment = 0

    def present_blocks(self, cohort: bytes, head: int) -> list[tuple[int, int]]:
        """Return the numbers of a cohort's blocks, and the samples of each, largest and oldest first."""
        query = "SELECT id, samples FROM blocks WHERE cohort = ? AND head = ? AND died IS NULL ORDER BY id"
        return self._file.query(query, cohort, head)

    def load(self, number: int) -> StatisticsBlock:
        """Return the block of that number."""
        (row,) = self._file.query(f"SELECT {BLOCK_COLUMNS} FROM blocks WHERE id = ?", number)
        block = StatisticsBlock.of_row(row)
        if block is None:
            raise self._file.damage("a block of statistics is not what was written")
        return block

    def blocks(self, cohort: bytes, head: int) -> Iterator[StatisticsBlock]:
        """Yield the blocks of a cohort."""
        for number, _ in self.present_blocks(cohort, head):
            yield self.load(number)

    def transaction(self) -> contextlib.AbstractContextManager[Execute]:
        """Return a context: everything inside is durable at its end, or nothing of it is done."""
        return self._file.transaction()

    def count(self, cohort: bytes) -> dict[int, int]:
        """Return how many samples of a cohort the sums of each head hold."""
        rows = self._file.query(
            "SELECT head, SUM(samples) FROM blocks WHERE cohort = ? AND died IS NULL GROUP BY head", cohort
        )
        return {int(head): int(samples) for head, samples in rows}

    def commit(self, offset: int, reserve: int) -> None:
        """Assign open blocks to the commit at `offset`; the last `reserve` commits stay reachable."""
        changed = "SELECT 1 FROM blocks WHERE born = ? OR died = ? LIMIT 1"
        if not self._file.query(changed, OPEN, OPEN):
            return  # the same moment serves this commit too
        self.moment = max(offset << SHIFT, self.moment + 1)
        with self._file.transaction() as run:
            run("UPDATE blocks SET born = ? WHERE born = ?", (self.moment, OPEN))
            run("UPDATE blocks SET died = ? WHERE died = ?", (self.moment, OPEN))
            run("INSERT INTO commits VALUES (?)", (self.moment,))
            recent = run("SELECT moment FROM commits ORDER BY moment DESC LIMIT ?", (reserve + 2,))
            oldest = recent.fetchall()[-1][0]  # the newest is to be written, the one before it may yet be
            run("DELETE FROM blocks WHERE died <= ?", (oldest,))
            run("DELETE FROM commits WHERE moment < ?", (oldest,))

    def restore(self, moment: int) -> None:
        """Restore the blocks of that moment, 0 for none. Raise ForgettingError where it cannot be reached."""
        self.moment = moment
        if moment and not self._file.query("SELECT 1 FROM commits WHERE moment = ?", moment):
            raise ForgettingError(
                f"{self._file.path} does not know the checkpoint: it is older, or has gone on without it",
                hint="restore it together with the checkpoints, or start over with --fresh",
            )
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born > ?", (self.moment,))
            run("UPDATE blocks SET died = NULL WHERE died > ?", (self.moment,))
            run("DELETE FROM commits WHERE moment > ?", (self.moment,))

    def replace(self, cohort: bytes, head: int, left: StatisticsBlock) -> None:
        """Replace a cohort's blocks by `left`, or by none where it is of no samples; staged."""
        with self._file.transaction() as run:
            for number, _ in self.present_blocks(cohort, head):
                run("UPDATE blocks SET died = ? WHERE id = ?", (STAGED, number))
            if left.samples:
                insert(run, cohort, head, left, STAGED)

    def drop(self, cohort: bytes) -> None:
        """Drop the sums of a cohort; staged."""
        with self._file.transaction() as run:
            run("UPDATE blocks SET died = ? WHERE died IS NULL AND cohort = ?", (STAGED, cohort))

    def drop_heads(self, first: int) -> None:
        """Drop the sums of the heads from `first` on; staged."""
        with self._file.transaction() as run:
            run("UPDATE blocks SET died = ? WHERE died IS NULL AND head >= ?", (STAGED, first))

    def accept(self) -> None:
        """Make the staged changes part of the next commit."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born = ? AND died = ?", (STAGED, STAGED))
            run("UPDATE blocks SET born = ? WHERE born = ?", (OPEN, STAGED))
            run("UPDATE blocks SET died = ? WHERE died = ?", (OPEN, STAGED))

    def rollback(self) -> None:
        """Discard the staged changes."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE born = ?", (STAGED,))
            run("UPDATE blocks SET died = NULL WHERE died = ?", (STAGED,))

    def purge(self) -> None:
        """Overwrite what only older checkpoints needed; call it when none of them is left."""
        with self._file.transaction() as run:
            run("DELETE FROM blocks WHERE died <= ?", (self.moment,))
            run("DELETE FROM commits WHERE moment < ?", (self.moment,))
        if not self._file.empty_journal():
            raise ForgettingError(
                f"{self._file.path} is in use, so its journal still holds erased sums",
                hint="close it in the other process; the erasure continues when the run is opened again",
            )

    def check(self) -> tuple[int, int, int]:
        """Return the numbers of cohorts, blocks and bytes. Raise ForgettingError where a block is damaged."""
        cohorts, blocks, size = set(), 0, 0
        for number, cohort, length in self._file.query(
            "SELECT id, cohort, LENGTH(root) + LENGTH(sums) FROM blocks WHERE died IS NULL ORDER BY id"
        ):
            self.load(number)
            cohorts.add(cohort)
            blocks, size = blocks + 1, size + length
        return len(cohorts), blocks, size

    def cohorts(self) -> set[bytes]:
        """Return those of which there are sums, older checkpoints' included."""
        return {bytes(row[0]) for row in self._file.query("SELECT DISTINCT cohort FROM blocks")}

    def close(self) -> None:
        """Close the file; harmless twice."""
        self._file.close()


def insert(run: Execute, cohort: bytes, head: int, block: StatisticsBlock, born: int = OPEN) -> None:
    """Write a block of a cohort in a head, within a transaction; it belongs to the next commit."""
    run(
        f"INSERT INTO blocks (born, {BLOCK_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (born, *block.row(cohort, head)),
    )


def end(run: Execute, number: int) -> None:
    """End a block with the next commit, within a transaction; one that no commit has is removed at once."""
    run("DELETE FROM blocks WHERE id = ? AND born = ?", (number, OPEN))
    run("UPDATE blocks SET died = ? WHERE id = ?", (OPEN, number))
