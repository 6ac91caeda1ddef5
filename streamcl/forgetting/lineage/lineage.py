"""The lineage: a row on disk for every sample that has passed, erased with the request that selects it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, Pixels, RejectedRecord
from streamcl.forgetting.lineage.image_hash import hash_of_image
from streamcl.forgetting.lineage.lineage_row import (
    LEARNED,
    PRESENT,
    PRIVATE,
    REJECTED,
    ROW_COLUMNS,
    LineageRow,
    row_of,
)
from streamcl.forgetting.lineage.relabelled_rows import RELABELLED, SAMPLE_COLUMNS, RelabelledRows
from streamcl.forgetting.lineage.selection import Selection
from streamcl.storage.sqlite import SqliteFile

LINEAGE = "lineage.sqlite"
"""The file's name in a run directory."""

ROWS_IN_MEMORY = 4096  # before they are written
LINEAGE_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE samples (offset INTEGER PRIMARY KEY, {SAMPLE_COLUMNS})",
    "CREATE INDEX by_id ON samples(id)",
    "CREATE INDEX by_label ON samples(label)",
    "CREATE INDEX by_subject ON samples(subject)",
    "CREATE INDEX by_domain ON samples(domain) WHERE domain IS NOT NULL",
    RELABELLED,
)


class Lineage:
    """One row a sample, some 180 bytes and 17 microseconds each; only a bounded buffer is in memory.

    Ids are kept as they are, so that a source can be asked for the samples again; subjects, domains and
    pixels as hashes under a key outside the run. A row belongs to the stream up to a commit once `flush`
    returned before it; `truncate` drops what a crash left after it. keep: how many checkpoints a run keeps.
    """

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self._file = SqliteFile(path, timeout=10.0, schema=LINEAGE_SCHEMA)
        self._file.query("PRAGMA temp_store = MEMORY")  # selections name ids, which no file may keep
        self._file.query("CREATE TEMP TABLE erased (offset INTEGER PRIMARY KEY)")
        self._waiting: list[tuple[int, tuple[Any, ...]]] = []  # each with its number among those replaced
        self._earlier = RelabelledRows(keep)

    @property
    def relabelled(self) -> int:
        """How many rows were replaced, because the label of a sample that had passed came, or another one."""
        return self._earlier.number

    def record(
        self,
        batch: Batch,
        *,
        learned: Collection[int],
        segment: int,
        contents: Sequence[bytes] | None = None,
        features: Sequence[bytes | None] | None = None,
    ) -> None:
        """Remember the samples of a batch that has passed, and which were learned, by their offsets.

        Rejected records have rows too: logs name them until they are erased. Samples of earlier batches,
        whose labels have come with this one, replace their rows. contents: the hashes of the images; None
        derives them here. features: their traces, or projections of their rows.
        """
        features = [None] * len(batch.samples) if features is None else features
        known = frozenset(learned)
        if contents is None:
            contents = [self.content(sample.image) for sample in batch.samples]
        columns = zip(batch.offsets, batch.samples, contents, features, strict=True)
        for offset, sample, content, projected in columns:
            was_learned = offset in known and sample.label is not None
            row = (
                offset,
                sample.id,
                sample.label,
                self._digest("subject", sample.subject),
                self._digest("domain", sample.domain),
                LEARNED * was_learned + PRIVATE * (sample.privacy == "user"),
                segment,
                content,
                projected,
            )
            replaces = offset < batch.offset
            self._earlier.number += replaces
            self._waiting.append((self._earlier.number * replaces, row))
        self._waiting += [(0, self._rejected_row(each, segment)) for each in batch.rejected if each.id]
        if len(self._waiting) >= ROWS_IN_MEMORY:
            self.flush()

    def flush(self) -> None:
        """On return every sample noted so far is in the file."""
        if not self._waiting:
            return
        with self._file.transaction() as run:
            for number, row in self._waiting:
                if number:
                    self._earlier.save(run, number, row[0])
                run("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._waiting.clear()

    def commit(self) -> None:
        """Flush, before the checkpoint that counts on it."""
        self.flush()
        if self.relabelled:
            with self._file.transaction() as run:
                self._earlier.commit(run)

    def truncate(self, offset: int, relabelled: int = 0) -> None:
        """Forget what passed at or after an offset, and labels after the first so many: they come again."""
        self._waiting.clear()
        with self._file.transaction() as run:
            self._earlier.restore(run, relabelled)
            run("DELETE FROM samples WHERE offset >= ?", (offset,))
            run("DELETE FROM temp.erased")

    def select(self, request: ForgetRequest) -> Selection:
        """Return the rows that the request selects; the file is searched once, here."""
        self.flush()
        where, values = self._condition(request)
        return Selection(self._file, where, values)

    def hidden_offsets(self) -> frozenset[int]:
        """Return the offsets that earlier requests of this erasure have taken (see `Selection.hide`)."""
        return frozenset(offset for (offset,) in self._file.query("SELECT offset FROM temp.erased"))

    def subsample(self, limit: int) -> list[LineageRow]:
        """At most so many traces of learned samples, evenly from the beginning of the stream to its end."""
        self.flush()
        rows = self._file.query(
            f"SELECT {ROW_COLUMNS} FROM (SELECT *, row_number() OVER (ORDER BY offset) AS number, "
            f"count(*) OVER () AS total FROM samples WHERE learned & {LEARNED} AND {PRESENT}) "
            "WHERE number * ? / total > (number - 1) * ? / total ORDER BY offset",
            *(limit, limit),
        )
        return [row_of(row) for row in rows[:limit]]

    def unlearned_offsets(self, start: int, end: int) -> frozenset[int]:
        """Return the offsets in [start, end) of samples with a label that were not learned."""
        self.flush()
        found = (
            "SELECT offset FROM samples WHERE offset >= ? AND offset < ? AND label IS NOT NULL "
            f"AND NOT learned & {LEARNED | REJECTED}"
        )
        return frozenset(offset for (offset,) in self._file.query(found, start, end))

    def classes(self) -> tuple[str, ...]:
        """Return the classes of the samples that have passed, the most frequent first."""
        found = "SELECT label FROM samples WHERE label IS NOT NULL GROUP BY label ORDER BY COUNT(*) DESC"
        return tuple(name for (name,) in self._file.query(found))

    def digest(self, kind: str, value: str) -> bytes:
        """A hash under this file's key."""
        return self._file.digest(kind, value)

    def learned_label(self, name: str) -> str | None:
        """Return the label under which the newest sample with this id was learned; None where none was."""
        self.flush()
        newest = f"SELECT label FROM samples WHERE id = ? AND learned & {LEARNED} ORDER BY offset DESC"
        return next((label for (label,) in self._file.query(newest, name)), None)

    def ids(self) -> Iterator[tuple[int | None, str]]:
        """Every id there is, with its offset, in the order of the stream."""
        after = -1
        while rows := self._file.query(
            "SELECT offset, id FROM samples WHERE offset > ? ORDER BY offset LIMIT 4096", after
        ):
            after = rows[-1][0]
            yield from ((offset, name) for offset, name in rows)

    def erase(self, offsets: Sequence[int]) -> None:
        """Remove traces for good: neither the file nor its journal holds their bytes afterwards."""
        with self._file.transaction() as run:
            self._earlier.erase(run)
            for offset in offsets:
                run("DELETE FROM samples WHERE offset = ?", (offset,))
            run("DELETE FROM temp.erased")
        if not self._file.empty_journal():
            raise ForgettingError(
                f"{self._file.path} is in use, so its journal still holds erased samples",
                hint="close it in the other process; the erasure continues when the run is opened again",
            )

    def content(self, image: Pixels) -> bytes:
        """Return a keyed hash of an image [H, W, 3], by which a sample brought back later is recognised."""
        return hash_of_image(self.key, image)

    @property
    def key(self) -> bytes:
        """The key of this lineage's hashes; it is in no file of the run."""
        return self._file.key

    def close(self) -> None:
        """Close the file; harmless twice. What was noted and not flushed is given up."""
        self._file.close()

    def _condition(self, request: ForgetRequest) -> tuple[str, tuple[Any, ...]]:
        if request.kind == "class":
            return "label = ?", (request.label,)
        if request.all_users:
            return f"learned & {PRIVATE}", ()
        if request.kind == "subject":
            return "subject = ?", (self._digest("subject", request.subject),)
        parts: list[tuple[str, tuple[Any, ...]]] = []
        if request.ids:
            self._choose(request.ids)
            parts.append(("id IN (SELECT id FROM temp.chosen)", ()))
        if request.id_pattern is not None:  # to SQLite a bracket opens a set of letters, here it is one
            parts.append(("id GLOB ?", (request.id_pattern.replace("[", "[[]"),)))
        if request.subject is not None:
            parts.append(("subject = ?", (self._digest("subject", request.subject),)))
        if request.domain is not None:
            parts.append(("domain = ?", (self._digest("domain", request.domain),)))
        if request.offsets is not None:
            parts.append(("offset >= ? AND offset < ?", request.offsets))
        wheres, values = zip(*parts, strict=True)
        return " AND ".join(wheres), tuple(value for each in values for value in each)

    def _choose(self, ids: Sequence[str]) -> None:
        """Ids may be more than SQLite takes as arguments, so they go to a table in memory."""
        self._file.query("CREATE TEMP TABLE IF NOT EXISTS chosen (id TEXT PRIMARY KEY)")
        with self._file.transaction() as run:
            run("DELETE FROM temp.chosen")
            for each in ids:
                run("INSERT OR IGNORE INTO temp.chosen VALUES (?)", (each,))

    def _rejected_row(self, record: RejectedRecord, segment: int) -> tuple[Any, ...]:
        subject, domain = self._digest("subject", record.subject), self._digest("domain", record.domain)
        bits = REJECTED + PRIVATE * (record.privacy == "user")
        return (record.offset, record.id, record.label, subject, domain, bits, segment, b"", None)

    def _digest(self, kind: str, value: str | None) -> bytes | None:
        return None if value is None else self._file.digest(kind, value)
