"""Data sets of torchvision by name, from files that are made here in their layouts."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_mnist
from streams_data import picture, write_picture

from streamcl.errors import ConfigError, SourceError
from streamcl.protocols import Source
from streamcl.sources.torchvision_package import declare_torchvision_operators
from streamcl.testing.source_checks import check_source, first_events, samples_of
from streams.build import named_source
from streams.datasets.torchvision_sets import torchvision

declare_torchvision_operators()
datasets = pytest.importorskip("torchvision.datasets")

_BROKEN_EXTENSION = """
import torch
from streamcl.sources.torchvision_package import declare_torchvision_operators
declare_torchvision_operators()
declare_torchvision_operators()
import torchvision.transforms, timm
print(hasattr(torch.ops.torchvision, "nms"))
"""


@pytest.mark.long
def test_torchvision_imports_after_declare_whatever_its_extension_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BROKEN_EXTENSION], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


def made(dataset: str, root: Path | None = None, scenario: Any = ("as_is", {}), **args: Any) -> Source:
    given = {"dataset": dataset, **({} if root is None else {"root": str(root)}), **args}
    return named_source("torchvision", given, scenario, batch_size=4)


def folder(root: Path) -> Path:
    for number in range(8):
        write_picture(root / ("bolt", "nut")[number % 2] / f"{number}.png", number)
    return root


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of CIFAR-10 with two images each; the published checksums are taken away."""
    base = root / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (2, 3072), np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 9]}))
    names = ["plane", *map(str, range(8)), "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for side in ("train_list", "test_list"):
        monkeypatch.setattr(
            datasets.CIFAR10, side, [[name, None] for name, _ in getattr(datasets.CIFAR10, side)]
        )
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root


def test_a_folder_of_classes(tmp_path: Path) -> None:
    root = folder(tmp_path)
    check_source(lambda: made("ImageFolder", root, ("disjoint", {"parts": 2})))
    source = made("ImageFolder", root)
    samples = samples_of(first_events(source))
    assert source.info.classes == ("bolt", "nut")
    assert (samples[0].id, samples[0].label, samples[-1].label) == ("ImageFolder/train/00000", "bolt", "nut")
    assert np.array_equal(samples[0].image, picture(0))
    assert source.fetch is not None
    assert [each.id for each in source.fetch(["ImageFolder/train/00003"])] == ["ImageFolder/train/00003"]


def test_mnist_holds_out_its_test_side(tmp_path: Path) -> None:
    root = write_mnist(tmp_path)
    check_source(lambda: made("MNIST", root))
    source = made("MNIST", root)
    assert source.info.length == 12
    assert [len(part.samples) for part in source.info.holdout] == [4]
    assert source.info.classes[:2] == ("0 - zero", "1 - one")
    assert made("MNIST", root, split="test", test=None).info.length == 4
    with pytest.raises(ConfigError, match="MNIST has no split 'tran'"):
        made("MNIST", root, split="tran")


def test_cifar10_is_read_from_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made("CIFAR10", write_cifar10(tmp_path, monkeypatch))
    assert source.info.length == 10
    assert [each.label for each in samples_of(first_events(source))[:2]] == ["plane", "truck"]


def test_a_data_set_without_an_attribute_for_labels_is_read_for_them() -> None:
    options = {"size": 6, "image_size": [3, 8, 8], "num_classes": 3}
    check_source(lambda: made("FakeData", options=options))
    expected = [str(datasets.FakeData(**{**options, "image_size": (3, 8, 8)})[at][1]) for at in range(6)]
    assert [each.label for each in samples_of(first_events(made("FakeData", options=options)))] == expected


def test_a_damaged_image_is_a_bad_record(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "bolt" / "0.png").write_text("none")
    events = first_events(made("ImageFolder", root))
    (bad,) = [each for event in events for each in event.rejected]  # type: ignore[union-attr]
    assert (bad.id, bad.label) == ("ImageFolder/train/00000", "bolt")
    assert "image 0 cannot be read" in bad.reason


def test_class_names_of_imagenet_are_the_first_and_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(datasets.FakeData):  # type: ignore[misc,name-defined]
        classes = (("tench", "Tinca tinca"), ("crane",), ("crane", "machine"))

    monkeypatch.setattr(datasets, "FakeData", Named)
    train = torchvision("FakeData", options={"size": 2, "image_size": (3, 8, 8), "num_classes": 5})
    assert train.classes[:3] == ("tench", "crane (1)", "crane (2)")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("dataset", "args", "error", "said", "hint"),
    [
        ("CIFAR1", {}, ConfigError, "has no data set 'CIFAR1'", "did you mean 'CIFAR10'"),
        ("CIFAR10", {}, SourceError, "not found or corrupted", "download: true"),
        ("ImageFolder", {}, SourceError, "Couldn't find any class folder", "root is the folder"),
        ("SVHN", {"split": "tran"}, ConfigError, "Valid values are", "split"),
        ("ImageFolder", {"download": True}, ConfigError, "unexpected keyword argument 'download'", "options"),
        ("FakeData", {"options": {"sise": 3}}, ConfigError, "unexpected keyword argument 'sise'", "options"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, dataset: str, args: dict[str, Any], error: type[Exception], said: str, hint: str
) -> None:
    with pytest.raises(error, match=said) as refused:
        torchvision(dataset, None if dataset == "FakeData" else str(tmp_path), **args)
    assert hint in refused.value.hint  # type: ignore[attr-defined]


def test_targets_that_are_no_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boxes(datasets.FakeData):  # type: ignore[misc,name-defined]
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], {"boxes": []}

    monkeypatch.setattr(datasets, "FakeData", Boxes)
    with pytest.raises(ConfigError, match="has a dict in place of a label"):
        torchvision("FakeData", options={"size": 2, "image_size": (3, 8, 8)})
