"""A CSV file that lists images: every fact that it gives, and a word where it is not what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from streams_data import png

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source, first_events, samples_of
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
