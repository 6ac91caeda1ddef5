"""Data sets as the package `datasets` reads them: by index and streamed, with what is wrong named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
from streams_data import picture, png, write_picture

from streamcl.errors import ConfigError, MissingExtra, SourceError
from streamcl.protocols import Source
from streamcl.testing.source_checks import check_source, first_events, samples_of
from streams.build import named_source

COUNT = 12


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder of images in the layout of `imagefolder`: two classes, two splits."""
    for number in range(COUNT):
        write_picture(tmp_path / "birds" / "train" / ("robin", "wren")[number % 2] / f"{number}.png", number)
    for number in range(4):
        write_picture(
            tmp_path / "birds" / "test" / ("robin", "wren")[number % 2] / f"{number}.png", 50 + number
        )
    return str(tmp_path / "birds")


def saved(path: Path, features: Any = None, **columns: list[Any]) -> str:
    """Save a data set with an encoded picture a row."""
    count = len(next(iter(columns.values()), range(COUNT)))
    rows = {"picture": [{"bytes": png(number), "path": None} for number in range(count)], **columns}
    table = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    for column, feature in (features or {}).items():
        table = table.cast_column(column, feature)
    table.save_to_disk(str(path))
    return str(path)


def made(path: str, scenario: Any = ("as_is", {}), **args: Any) -> Source:
    return named_source("huggingface", {"path": path, **args}, scenario, batch_size=4)


@pytest.mark.long
def test_a_folder_of_images_is_a_data_set_that_a_scenario_orders(folder: str) -> None:
    check_source(lambda: made(folder, ("disjoint", {"parts": 2}), test="test"))
    source = made(folder, ("disjoint", {"parts": 2}), test="test")
    assert source.info.classes == ("robin", "wren")
    assert source.info.shifts == (COUNT // 2,)
    assert [len(part.samples) for part in source.info.holdout] == [2, 2]
    assert {each.label for each in samples_of(first_events(source, 1))} in ({"robin"}, {"wren"})


def test_rows_have_their_place_as_their_id_and_can_be_fetched(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "saved", label=[0, 1] * 6, features={"label": datasets.ClassLabel(names=["a", "b"])}
    )
    source = made(path)
    samples = samples_of(first_events(source))
    assert [(each.id, each.label) for each in samples[:2]] == [
        ("saved/train/00000", "a"),
        ("saved/train/00001", "b"),
    ]
    assert np.array_equal(samples[3].image, picture(3))
    assert source.fetch is not None
    (again,) = source.fetch(["saved/train/00007"])
    assert np.array_equal(again.image, picture(7))


def test_columns_are_named_where_they_are_not_found_by_their_types(tmp_path: Path) -> None:
    facts = {"species": ["wren", None], "number": [7, 8], "who": ["anna", None], "place": ["", "lab"]}
    path = saved(tmp_path / "saved", **facts)
    with pytest.raises(ConfigError, match="has 0 columns of the type ClassLabel") as refused:
        made(path)
    assert "label: ..." in str(refused.value.hint)
    named = {"label": "species", "ids": "number", "subject": "who", "domain": "place"}
    samples = samples_of(first_events(made(path, **named)))
    assert [(each.id, each.label, each.subject, each.domain) for each in samples] == [
        ("7", "wren", "anna", None),
        ("8", None, None, "lab"),
    ]
    with pytest.raises(ConfigError, match="no column 'specis'") as refused:
        made(path, label="specis")
    assert "did you mean 'species'" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="cannot be the labels"):
        made(saved(tmp_path / "floats", label=[0.5, 1.5]), label="label")


def test_numbers_are_classes_in_their_order_and_minus_one_is_no_label(tmp_path: Path) -> None:
    source = made(saved(tmp_path / "saved", label=[10, 9, -1, 2]), label="label")
    assert source.info.classes == ("2", "9", "10")
    assert [each.label for each in samples_of(first_events(source))] == ["10", "9", None, "2"]


def test_a_damaged_picture_is_a_bad_record(tmp_path: Path) -> None:
    rows = {"picture": [{"bytes": b"none", "path": None}, None], "label": [1, 1]}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    (batch,) = first_events(made(str(tmp_path / "saved"), label="label"))
    reasons = [each.reason for each in batch.rejected]  # type: ignore[union-attr]
    assert "not an image" in reasons[0]
    assert "has no picture" in reasons[1]


def test_a_streamed_split_is_resumed_by_its_own_state(folder: str) -> None:
    check_source(lambda: made(folder, None, streaming=True))
    source = made(folder, None, streaming=True)
    assert source.info.classes == ("robin", "wren")
    assert source.replayable
    labels = [each.label for each in samples_of(first_events(source))]
    assert sorted(map(str, labels)) == ["robin"] * 6 + ["wren"] * 6
    with pytest.raises(ConfigError, match="held-out"):
        made(folder, None, streaming=True, test="test")


def test_pictures_that_are_files_elsewhere_are_read_as_the_stream_comes_to_them() -> None:
    from streams.datasets.huggingface_rows import Columns, StreamedRows

    fsspec.filesystem("memory").pipe("/pictures/3.png", png(3))

    def rows() -> Iterator[dict[str, Any]]:
        yield {"img": {"bytes": None, "path": "memory://pictures/3.png"}, "kind": -1}

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["a"])})
    dataset = datasets.IterableDataset.from_generator(rows, features=features)
    (record,) = StreamedRows(dataset, "elsewhere", Columns())
    assert (record["image"], record["label"]) == (png(3), None)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"split": "tran"}, 'Unknown split "tran". Should be one of'),
        ({"config": "none"}, "BuilderConfig 'none' not found"),
    ],
)
def test_what_does_not_exist_is_named(folder: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(folder, **args)


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    one = datasets.load_from_disk(saved(tmp_path / "one", label=[1, 2]))
    datasets.DatasetDict({"train": one, "later": one}).save_to_disk(str(tmp_path / "both"))
    assert made(str(tmp_path / "both"), split="later", label="label").info.length == 2
    with pytest.raises(ConfigError, match="no split 'latr'") as refused:
        made(str(tmp_path / "both"), split="latr", label="label")
    assert "did you mean 'later'" in str(refused.value.hint)


def test_an_absent_folder_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        made(str(tmp_path / "none"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.parquet").write_text("none")
    with pytest.raises((ConfigError, SourceError), match="the data set"):
        made(str(tmp_path / "bad"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra) as refused:
        made("beans")
    assert refused.value.hint == 'pip install "streamcl[huggingface]"'


def test_without_a_network_the_first_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, **options: Any) -> None:
        raise ConnectionError(f"Couldn't reach {path!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SourceError, match="not on this machine, and out of reach") as refused:
        made("beans")
    assert "save_to_disk" in str(refused.value.hint)
