"""Every published data set in its own layout on disk, tiny and drawn: what the shipped configs read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dataset_files import (
    write_cifar100_meta,
    write_cifar100_side,
    write_core50,
    write_cub200,
    write_mnist,
    write_tar,
)
from streams_data import png, write_picture

CLASSES = 20  # as many as the most parts that a shipped config asks for


def data_root(root: Path) -> Path:
    """The folder that STREAMCL_DATA names, with a folder for each data set as `streamcl fetch` leaves it."""
    write_core50(root / "core50", frames=1)
    _cifar100(root / "cifar100")
    _birds(root / "cub200")
    _folders(root / "imagenet-r" / "imagenet-r", [f"n{number:08d}" for number in range(CLASSES)])
    _folders(root / "imagenet-sketch" / "sketch", [f"n{number:08d}" for number in range(CLASSES)])
    _folders(root / "folder", ["ant", "bee", "cat", "dog", "emu"])
    _shards(root / "shards")
    _lists(root / "lists")
    _coco(root / "coco")
    _hub(root / "pets")
    write_mnist(root / "torchvision", train=40, test=20)
    return root


def _cifar100(root: Path) -> None:
    root.mkdir(parents=True)
    labels = [number % CLASSES for number in range(2 * CLASSES)]
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    write_cifar100_side(root, "train", images, labels, [0] * len(labels))
    write_cifar100_side(root, "test", images[:CLASSES], labels[:CLASSES], [0] * CLASSES)
    write_cifar100_meta(root, [f"thing {number}" for number in range(CLASSES)], ["all"])


def _birds(root: Path) -> None:
    folders = [f"{number:03d}.Bird_{number}" for number in range(1, CLASSES + 1)]
    images = [
        (f"{folder}/Bird_{side}_{number}.png", number, side < 2, png(10 * number + side))
        for number, folder in enumerate(folders, 1)
        for side in range(3)
    ]
    root.mkdir()
    write_cub200(root, images)


def _folders(root: Path, classes: list[str]) -> None:
    for number, name in enumerate(classes):
        for copy in range(3):
            write_picture(root / name / f"{copy}.png", 10 * number + copy)


def _shards(root: Path) -> None:
    root.mkdir()
    for shard in range(2):
        names = [f"{shard}{number}" for number in range(5)]
        members = [(f"{n}.png", png(int(n))) for n in names] + [(f"{n}.cls", n[-1].encode()) for n in names]
        write_tar(root / f"train-{shard:03}.tar", sorted(members))


def _lists(root: Path) -> None:
    names = [f"birds/{number}.png" for number in range(10)]
    for number, name in enumerate(names):
        write_picture(root / name, number)
    table = pa.table({"path": names, "species": ["wren", "robin"] * 5})
    pq.write_table(table, root / "birds.parquet")


def _coco(root: Path) -> None:
    """Five pictures of 16 x 16 pixels with two boxes each."""
    images, boxes = [], []
    for number in range(5):
        write_picture(root / "images" / f"{number}.png", number, size=16)
        images.append({"id": number, "file_name": f"{number}.png", "width": 16, "height": 16})
        for side in range(2):
            place = {"bbox": [8 * side, 0, 8, 12], "category_id": side}
            boxes.append({"id": len(boxes), "image_id": number, **place})
    categories = [{"id": 0, "name": "cup"}, {"id": 1, "name": "jug"}]
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / "instances.json").write_text(json.dumps(content))


def _hub(root: Path) -> None:
    """A data set as the package `datasets` saves it: two splits of ten pictures."""
    import datasets  # with pandas: more than a second

    rows = {"image": [{"bytes": png(number), "path": None} for number in range(10)], "label": [0, 1] * 5}
    types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(types))
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(root))
