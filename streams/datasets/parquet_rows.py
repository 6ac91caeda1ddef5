"""The rows of a Parquet file by index, of which one row group at a time is in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from streamcl.errors import MissingExtra, SourceError

PARQUET_SUFFIXES = (".parquet", ".pq")


def parquet_columns(file: Path) -> list[str]:
    """Return the names of the file's columns. Raise as `ParquetRows` does."""
    with _opened(file) as parquet:
        return list(parquet.schema_arrow.names)


class ParquetRows(Sequence[Mapping[str, Any]]):
    """The rows of a file, each a mapping of those columns that are not null in it.

    The file is open only while a row group is read, so threads may share the rows.

    Args:
        file: in the format Parquet.
        columns: that are read, {name in the rows: name in the file}.

    Raises:
        MissingExtra: pyarrow is not installed.
        SourceError: the file is no Parquet file.
    """

    def __init__(self, file: Path, columns: Mapping[str, str]) -> None:
        self._file, self._columns = file, dict(columns)
        with _opened(file) as parquet:
            self._metadata = parquet.metadata
        groups = map(self._metadata.row_group, range(self._metadata.num_row_groups))
        sizes = [int(group.num_rows) for group in groups]
        self._starts = list(accumulate(sizes, initial=0))
        self._current: tuple[int, Any] = (-1, None)  # the number of a row group, and its rows

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        """Return the row. Raise SourceError where its row group is damaged."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect_right(self._starts, place) - 1
        group, row = self._group(number), place - self._starts[number]
        values = {ours: group.column(theirs)[row].as_py() for ours, theirs in self._columns.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _group(self, number: int) -> Any:
        current = self._current
        if current[0] != number:
            with _opened(self._file, self._metadata) as parquet:
                current = number, parquet.read_row_group(number, columns=list(self._columns.values()))
            self._current = current
        return current[1]


@contextmanager
def _opened(file: Path, metadata: Any = None) -> Iterator[Any]:
    """Open the file; metadata: the content of its footer, where it has been read before."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        hint = 'pip install "streamcl[parquet]"'
        raise MissingExtra(f"{file} cannot be read without the package pyarrow", hint=hint) from error
    try:
        with pq.ParquetFile(file, metadata=metadata) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file} cannot be read as Parquet: {error}") from error
