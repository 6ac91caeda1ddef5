"""A CSV or Parquet file that lists images: every fact in it, and a word where it is not what it should be."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streams_data import png

from streamcl.errors import ConfigError, MissingExtra, SourceError
from streamcl.testing.source_checks import check_source, fingerprints, first_events, samples_of
from streams.build import named_source
from streams.datasets.manifest import manifest

LISTED = """path,label,id,subject,domain,time
0.png,cat,first,anna,lab,10:00
"1.png",dog,,,,10:01
2.png,,,,field,10:02
absent.png,cat,,,,10:03
,cat,,,,10:04
"""


def write(folder: Path, text: str | bytes = LISTED) -> str:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_each_row_is_a_record_with_the_facts_that_it_gives(tmp_path):
    events = first_events(named_source("manifest", {"path": write(tmp_path)}))
    facts = [(each.id, each.label, each.subject, each.domain) for each in samples_of(events)]
    assert facts == [
        ("first", "cat", "anna", "lab"),
        ("1.png", "dog", None, None),
        ("2.png", None, None, "field"),
    ]
    reasons = [each.reason for event in events for each in event.rejected]
    assert ["absent.png" in reasons[0], "row 5 has no path" in reasons[1]] == [True, True]


def test_it_keeps_the_promises_of_a_source(tmp_path):
    path = write(tmp_path)
    check_source(lambda: manifest(path, batch_size=2))


def test_columns_of_other_names_and_images_elsewhere(tmp_path):
    (tmp_path / "lists").mkdir()
    write(tmp_path)
    path = tmp_path / "lists" / "birds.csv"
    path.write_text("\ufefffile_name,species\n0.png,wren\n1.png,\u00fcberwren\n", encoding="utf-8")
    columns = {"path": "file_name", "label": "species"}
    events = first_events(manifest(str(path), root=str(tmp_path), columns=columns))
    assert [(each.id, each.label) for each in samples_of(events)] == [
        ("0.png", "wren"),
        ("1.png", "\u00fcberwren"),
    ]


@pytest.mark.parametrize(
    ("text", "options", "error", "words", "hint"),
    [
        ("file,label\na.png,cat\n", {}, ConfigError, "has no column 'path'", "file, label"),
        (
            LISTED,
            {"columns": {"label": "lable"}},
            ConfigError,
            "has no column 'lable'",
            "did you mean 'label'",
        ),
        (LISTED, {"columns": {"lable": "label"}}, ConfigError, "the key 'lable'", "did you mean 'label'"),
        (LISTED, {"root": "nowhere"}, ConfigError, "nowhere is not a folder", "folder of the images"),
        (b"path\n\xff.png\n", {}, SourceError, "is no CSV file in UTF-8", ""),
        (b'path\n"a', {}, SourceError, "is no CSV file in UTF-8", ""),
        ("", {}, ConfigError, "has no column 'path'", "none"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, options, error, words, hint):
    with pytest.raises(error, match=words) as refused:
        manifest(write(tmp_path, text), **options)
    assert hint in (refused.value.hint or "")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        manifest(str(tmp_path / "none.csv"))


def write_parquet(folder: Path, rows: list[dict[str, Any]], group: int = 2) -> str:
    """Write the rows in groups of `group`, beside three pictures."""
    write(folder)
    path = folder / "list.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"path": "0.png", "label": "cat", "id": "first", "subject": "anna", "domain": "lab", "time": 3.5},
    {"path": "1.png", "label": "dog", "id": None, "subject": "", "domain": None, "time": None},
    {"path": "2.png", "label": None, "domain": "field"},
    {"path": "absent.png", "label": "cat"},
    {"path": None, "label": "cat"},
]


def test_parquet_gives_the_records_that_csv_gives(tmp_path: Path) -> None:
    events = first_events(named_source("manifest", {"path": write_parquet(tmp_path, ROWS)}))
    expected = first_events(named_source("manifest", {"path": write(tmp_path)}))
    assert fingerprints(events) == fingerprints(expected)


def test_parquet_keeps_the_promises_of_a_source(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, ROWS, group=1)
    check_source(lambda: manifest(path, batch_size=2))


def test_integers_and_categories_of_parquet_are_names(tmp_path: Path) -> None:
    write(tmp_path)
    species = pa.array(["wren", "wren"]).dictionary_encode()
    table = pa.table({"file": ["0.png", "1.png"], "species": species, "number": [7, 8], "subject": [1, 2]})
    pq.write_table(table, tmp_path / "list.pq")
    columns = {"path": "file", "label": "species", "id": "number"}
    samples = samples_of(first_events(manifest(str(tmp_path / "list.pq"), columns=columns)))
    assert [(each.id, each.label, each.subject) for each in samples] == [
        ("7", "wren", "1"),
        ("8", "wren", "2"),
    ]


def test_a_row_group_is_read_when_the_stream_comes_to_it(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path, ROWS))
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    records = manifest(str(path), batch_size=1)
    assert [each.id for each in samples_of(islice(records, 2))] == ["first", "1.png"]
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        list(records)


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path, ROWS)
    with pytest.raises(ConfigError, match="no column 'lable'") as refused:
        manifest(path, columns={"label": "lable"})
    assert "did you mean 'label'" in str(refused.value.hint)
    (tmp_path / "text.parquet").write_text(LISTED)
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        manifest(str(tmp_path / "text.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow") as refused:
        manifest(path)
    assert refused.value.hint == 'pip install "streamcl[parquet]"'
