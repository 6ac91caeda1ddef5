"""Reads a CSV or Parquet file that lists images, with label, id, subject, domain, privacy as known."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamcl.errors import BadRecord, ConfigError, SourceError, nearest
from streams.datasets.parquet_rows import PARQUET_SUFFIXES, ParquetRows, parquet_columns
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

PATH = "path"
MANIFEST_FIELDS = ("label", "id", "subject", "domain", "privacy")


def manifest(
    path: str,
    *,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    name: str = "manifest",
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> IterableSource:
    """Return a source of the images that a CSV or Parquet file lists, in its order.

    The first line of a CSV file names the columns. An empty field, or null, is unknown; without an id, the
    image's path is one. Other columns are passed over. Of a Parquet file one row group at a time is read.

    Args:
        path: of the file: Parquet where it ends with .parquet or .pq, else CSV in UTF-8.
        root: the folder to which the images' paths are relative, that of the file where it is None.
        columns: names of the file's own columns, {"path": "file_name", "label": "species"}.
        name: of the stream.
        batch_size: records in a batch.
        policy: limits, and what is done with bad records.

    Raises:
        ConfigError: there is no such file, folder or column, or pyarrow is needed and not installed.
        SourceError: the file is no CSV in UTF-8, or no Parquet file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no file {path!r}")
    base = file.parent if root is None else Path(root).expanduser()
    if not base.is_dir():
        raise ConfigError(f"{base} is not a folder", hint="root is the folder of the images")
    rows = _rows(file, columns or {})
    records = ListedImages(rows, base)
    return IterableSource(lambda: records, name=name, batch_size=batch_size, policy=policy or RecordPolicy())


class ListedImages:
    """The records of a manifest by index; an image is read when its record is converted."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], root: Path) -> None:
        self._rows, self._root = rows, root

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        if not isinstance(row.get(PATH), str) or not row[PATH]:
            return BadRecord(f"row {index + 1} has no path")
        facts = {each: row[each] for each in MANIFEST_FIELDS if row.get(each, "") != ""}
        return {"id": row[PATH], "label": None, **facts, "image": self._root / row[PATH]}


def _rows(file: Path, renamed: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Return the known fields of each row under our names. renamed: columns that the file must have."""
    known = (PATH, *MANIFEST_FIELDS)
    if unknown := sorted(set(renamed) - set(known)):
        raise ConfigError(f"columns has the key {unknown[0]!r}", hint=nearest(unknown[0], known))
    columns = {each: renamed.get(each, each) for each in known}
    required = [columns[each] for each in sorted({PATH, *renamed})]
    if file.suffix.lower() in PARQUET_SUFFIXES:
        found = parquet_columns(file)
        _require(file, required, found)
        return ParquetRows(file, {ours: theirs for ours, theirs in columns.items() if theirs in found})
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            _require(file, required, list(reader.fieldnames or ()))
            return [
                {ours: row[theirs] for ours, theirs in columns.items() if row.get(theirs)} for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file} is no CSV file in UTF-8: {error}") from error


def _require(file: Path, required: Sequence[str], found: Sequence[str]) -> None:
    """Raise ConfigError where a required column is not among those found."""
    for each in required:
        if each not in found:
            raise ConfigError(f"{file} has no column {each!r}", hint=nearest(each, found))
