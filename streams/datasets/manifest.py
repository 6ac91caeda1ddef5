"""Reads a CSV file that lists images: a path and, as known, label, id, subject, domain and privacy."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamcl.errors import BadRecord, ConfigError, SourceError, nearest
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
    """Return a source of the images that a CSV file lists, in its order.

    The first line names the columns. An empty field is unknown; without an id, the image's path is one. Other
    columns are passed over.

    Args:
        path: of the CSV file, in UTF-8.
        root: the folder to which the images' paths are relative, that of the CSV file where it is None.
        columns: names of the file's own columns, {"path": "file_name", "label": "species"}.
        name: of the stream.
        batch_size: records in a batch.
        policy: limits, and what is done with bad records.

    Raises:
        ConfigError: there is no such file, folder or column.
        SourceError: the file is no CSV in UTF-8.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no file {path!r}")
    base = file.parent if root is None else Path(root).expanduser()
    if not base.is_dir():
        raise ConfigError(f"{base} is not a folder", hint="root is the folder of the images")
    rows = _rows(
        file, {each: each for each in (PATH, *MANIFEST_FIELDS)} | dict(columns or {}), set(columns or {})
    )
    records = ListedImages(rows, base)
    return IterableSource(lambda: records, name=name, batch_size=batch_size, policy=policy or RecordPolicy())


class ListedImages:
    """The records of a manifest by index; an image is read when its record is converted."""

    def __init__(self, rows: Sequence[Mapping[str, str]], root: Path) -> None:
        self._rows, self._root = rows, root

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        if not row.get(PATH):
            return BadRecord(f"row {index + 1} has no path")
        facts = {each: row[each] for each in MANIFEST_FIELDS if each in row}
        return {"id": row[PATH], "label": None, **facts, "image": self._root / row[PATH]}


def _rows(file: Path, columns: Mapping[str, str], required: set[str]) -> list[dict[str, str]]:
    """Return the known fields of each row under our names; empty ones are left out."""
    if unknown := sorted(required - {PATH, *MANIFEST_FIELDS}):
        raise ConfigError(
            f"columns has the key {unknown[0]!r}", hint=nearest(unknown[0], (PATH, *MANIFEST_FIELDS))
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            found = list(reader.fieldnames or ())
            for each in sorted({PATH} | required):
                if columns[each] not in found:
                    raise ConfigError(
                        f"{file} has no column {columns[each]!r}", hint=nearest(columns[each], found)
                    )
            return [
                {ours: row[theirs] for ours, theirs in columns.items() if row.get(theirs)} for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file} is no CSV file in UTF-8: {error}") from error
