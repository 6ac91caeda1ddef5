from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams_data import dev_path, picture, png

from streamcl.errors import SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.npz import npz
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import as_is, disjoint

X = np.stack([picture(index) for index in range(12)])
Y = np.arange(12) % 3


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "mine.npz", **arrays)
    return path / "mine.npz"


def test_arrays_with_a_split(tmp_path: Path) -> None:
    split = np.array([0] * 9 + [1] * 3)
    train, test = npz(save(tmp_path, x=X, y=Y, split=split))
    assert (len(train), len(test)) == (9, 3)
    assert train.classes == ("0", "1", "2")
    assert test[0].id == "mine/00009"
    assert np.array_equal(test[0].image, X[9])
    check_source(lambda: ReplaySource(train, disjoint(train, 3), 2, test))


def test_without_a_split_each_class_is_divided(tmp_path: Path) -> None:
    train, test = npz(save(tmp_path, x=X, y=Y), test_percent=25)
    assert sorted(test[index].label or "" for index in range(len(test))) == ["0", "1", "2"]
    assert len(train) == 9


def test_names_come_from_meta(tmp_path: Path) -> None:
    meta = json.dumps({"classes": ["a", "b", "c"], "domains": ["day", "night"], "inst_names": ["ann", "bob"]})
    groups = np.arange(12) // 6
    train, _ = npz(save(tmp_path, x=X, y=Y, d=groups, inst=groups - 1, meta=np.array(meta)), test_percent=0)
    first, last = train[0], train[11]
    assert (first.label, first.domain, first.subject) == ("a", "day", None)
    assert (last.label, last.domain, last.subject) == ("c", "night", "ann")


def test_packed_image_files(tmp_path: Path) -> None:
    files = [png(index) for index in range(12)]
    offsets = np.concatenate([[0], np.cumsum([len(file) for file in files])])
    packed = np.frombuffer(b"".join(files), np.uint8)
    train, _ = npz(save(tmp_path, jpg=packed, off=offsets, y=Y), test_percent=0)
    for index in range(12):
        assert np.array_equal(train[index].image, X[index])


def test_grey_and_floating_point_images(tmp_path: Path) -> None:
    grey = npz(save(tmp_path, x=X[..., 0], y=Y), test_percent=0)[0]
    assert np.array_equal(grey[3].image, np.repeat(X[3, :, :, :1], 3, 2))
    floating = npz(save(tmp_path, x=X / 255, y=Y), test_percent=0)[0]
    assert np.array_equal(floating[3].image, X[3])


def test_string_labels_and_unlabelled_images(tmp_path: Path) -> None:
    train, _ = npz(save(tmp_path, x=X[:3], y=np.array(["dog", "cat", "dog"])), test_percent=0)
    assert train.classes == ("cat", "dog")
    assert [train[index].label for index in range(3)] == ["dog", "cat", "dog"]
    train, _ = npz(save(tmp_path, x=X[:3], y=np.array([-100, 1, -1])), test_percent=0)
    assert [train[index].label for index in range(3)] == [None, "1", None]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": X, "y": Y}, "has no images; it holds images"),
        ({"x": X}, "no labels y"),
        ({"x": X, "y": Y[:5]}, "12 images and 5 labels"),
        ({"x": X, "y": Y / 2}, "y is float64"),
        ({"x": X, "y": Y, "split": np.zeros((12, 1), np.int64)}, "split is int64"),
        ({"jpg": np.zeros(4, np.uint8), "off": np.array([0, 3, 2]), "y": Y[:2]}, "does not rise"),
        ({"jpg": np.zeros(4, np.uint8), "off": np.array([0, 9]), "y": Y[:1]}, "does not rise"),
        ({"x": X, "y": Y, "meta": np.array("{")}, "not JSON"),
        ({"x": X, "y": Y, "meta": np.array('{"classes": ["a"]}')}, "no list of 3 different names"),
        ({"x": np.array([{"a": 1}] * 12), "y": Y}, "cannot be read as .npz"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        npz(save(tmp_path, **arrays))


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        npz(tmp_path / "absent.npz")
    for name, content in (("text.npz", b"hello"), ("cut.npz", save(tmp_path, x=X, y=Y).read_bytes()[:200])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match="cannot be read as"):
            npz(tmp_path / name)


@pytest.mark.data
@pytest.mark.parametrize(("name", "sizes"), [("core50_micro", (70, 30)), ("cub6_micro", (111, 52))])
def test_development_packs(name: str, sizes: tuple[int, int]) -> None:
    train, test = npz(dev_path(name))
    assert (len(train), len(test)) == sizes
    check_source(lambda: ReplaySource(train, as_is(train), 32, test), limit=2)
