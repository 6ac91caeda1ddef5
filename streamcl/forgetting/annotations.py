"""The annotations of a labelling tool by their numbers, since a deletion names nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from streamcl.errors import ForgettingError
from streamcl.forgetting.methods.protocol import DataLocation, LocationStatus
from streamcl.requests.label import Label
from streamcl.sinks.redaction import RedactionTarget
from streamcl.storage.sqlite import Execute, SqliteFile

ANNOTATIONS = "annotations.sqlite"
"""The file's name in a run directory; there is none before the first annotation."""
ANNOTATIONS_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE annotations (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        number INTEGER NOT NULL UNIQUE,
        record TEXT NOT NULL,
        label TEXT NOT NULL
    )""",
    "CREATE INDEX by_record ON annotations(record)",
    "CREATE INDEX by_class ON annotations(label)",
)


class Annotations(AbstractContextManager["Annotations"]):
    """Which annotation gave which record which label, in the order in which they came.

    Changes are durable when a method returns. Several processes may use one file; each waits for the others.
    Every method raises ForgettingError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, timeout=10.0, schema=ANNOTATIONS_SCHEMA)

    def note(self, given: Iterable[tuple[int, str, str]]) -> None:
        """Note annotations: number, record and label of each. One that is known becomes the newest."""
        with self._file.transaction() as run:
            for number, record, label in given:
                run("DELETE FROM annotations WHERE number = ?", (number,))
                run(
                    "INSERT INTO annotations (number, record, label) VALUES (?, ?, ?)",
                    (number, record, label),
                )

    def labels_without(self, numbers: Collection[int]) -> Mapping[str, str | None]:
        """Return the labels that records have without some of their annotations, by the records' ids.

        It is that of the newest annotation that is left; None where none is.
        """
        records = dict.fromkeys(
            record
            for number in numbers
            for (record,) in self._file.query("SELECT record FROM annotations WHERE number = ?", number)
        )
        return {record: self._newest_label(record, numbers) for record in records}

    def records(self) -> list[str]:
        """Return the id of the record of every annotation, in their order."""
        return [name for (name,) in self._file.query("SELECT record FROM annotations ORDER BY position")]

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove annotations."""
        with self._file.transaction() as run:
            for number in numbers:
                run("DELETE FROM annotations WHERE number = ?", (number,))

    def count(self, target: RedactionTarget) -> int:
        """Return how many there are of some records and of some classes."""
        read = self._file.query
        found = [read("SELECT number FROM annotations WHERE record = ?", name) for name in target.ids]
        found += [read("SELECT number FROM annotations WHERE label = ?", name) for name in target.labels]
        return len({number for rows in found for (number,) in rows})

    def erase(self, target: RedactionTarget) -> None:
        """Remove, for good, those of some records and of some classes."""
        with self._erasing() as run:
            for name in target.ids:
                run("DELETE FROM annotations WHERE record = ?", (name,))
            for name in target.labels:
                run("DELETE FROM annotations WHERE label = ?", (name,))

    def erase_returned(self, ids: Collection[str], labels: Collection[Label]) -> None:
        """Remove, for good, those of some records, and those that gave these labels."""
        with self._erasing() as run:
            for name in ids:
                run("DELETE FROM annotations WHERE record = ?", (name,))
            for label in labels:
                run("DELETE FROM annotations WHERE record = ? AND label = ?", (label.id, label.label))

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _newest_label(self, record: str, gone: Collection[int]) -> str | None:
        known = "SELECT number, label FROM annotations WHERE record = ? ORDER BY position DESC"
        left = (label for number, label in self._file.query(known, record) if number not in gone)
        return next(left, None)

    @contextmanager
    def _erasing(self) -> Iterator[Execute]:
        with self._file.transaction() as run:
            yield run
        if not self._file.empty_journal():
            raise ForgettingError(
                f"{self._file.path} is in use, so its journal still holds erased annotations",
                hint="close it in the other process; the erasure continues when the run is opened again",
            )


def annotated_records(folder: Path) -> Iterator[str]:
    """Yield the id of the record of every annotation of a run that has some."""
    with Annotations(folder / ANNOTATIONS) as known:
        yield from known.records()


def count_annotations(folder: Path, target: RedactionTarget) -> int:
    """Return how many annotations of a run are of a target."""
    if not (folder / ANNOTATIONS).exists():
        return 0
    with Annotations(folder / ANNOTATIONS) as known:
        return known.count(target)


def erase_annotations(folder: Path, target: RedactionTarget, removed: int) -> tuple[DataLocation, ...]:
    """Remove a target from the annotations; return what was done there, nothing where a run has none.

    removed: how many the receipt says there were, before a crash too.
    """
    if not (folder / ANNOTATIONS).exists():
        return ()
    with Annotations(folder / ANNOTATIONS) as known:
        known.erase(target)
    status: LocationStatus = "erased" if removed else "not affected"
    return (DataLocation("annotations of a labelling tool", status, f"{removed} were of it"),)


def erase_returned_annotations(folder: Path, ids: Collection[str], labels: Collection[Label]) -> None:
    """Remove annotations of what came again although it is forgotten."""
    if (folder / ANNOTATIONS).exists():
        with Annotations(folder / ANNOTATIONS) as known:
            known.erase_returned(ids, labels)
