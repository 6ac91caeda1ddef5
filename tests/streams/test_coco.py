"""Annotations in the format of COCO: one label an image, or a record a box, or why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streams_data import picture, write_picture

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source, first_events, samples_of
from streams.build import named_source
from streams.datasets.coco import coco

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def box(number: int, image: int, category: int, at: list[float] | None = None, **more: Any) -> dict[str, Any]:
    outline = [[0, 0, 1, 1, 2, 2]]
    entry = {"id": number, "image_id": image, "category_id": category, "segmentation": outline, **more}
    return entry if at is None else {**entry, "bbox": at}


def write(folder: Path, annotations: list[dict[str, Any]], count: int = 4, **changed: Any) -> str:
    """Write so many pictures of 16 x 8 pixels, named and numbered from 1 on, and the annotations."""
    entries = []
    for number in range(1, count + 1):
        pixels = np.concatenate([picture(number), picture(number + 50)], axis=1)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        size = {"width": 16, "height": 8}
        entries.append({"id": number, "file_name": f"photos/{number}.png", "who": f"p{number % 2}", **size})
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES, **changed}
    (folder / "annotations.json").write_text(json.dumps(content))
    return str(folder / "annotations.json")


def read(path: str, **options: Any) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Return (id, label) of each sample, and the reasons of the records that are bad."""
    events = first_events(coco(path, **options))
    reasons = [each.reason for event in events for each in event.rejected]  # type: ignore[union-attr]
    return [(each.id, each.label) for each in samples_of(events)], reasons


ANNOTATIONS = [
    box(1, 2, 7, [0, 0, 4, 4]),
    box(2, 1, 3, [2.5, 1.2, 3, 4]),
    box(3, 1, 3, [10, 2, 4, 4]),
    box(4, 3, 7, [0, 0, 8, 8]),
    box(5, 3, 3, [8, 0, 8, 8], iscrowd=1),
]


def test_an_image_of_one_category_has_its_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, ANNOTATIONS)
    found, reasons = read(path)
    assert found == [("1", "dog"), ("2", "cat"), ("4", None)]
    assert reasons == ["image 3 has annotations of several categories: cat, dog"]
    assert "1 of 4 images have annotations of several categories" in caplog.text
    assert read(path, unlabelled="skip")[0] == [("1", "dog"), ("2", "cat")]


def test_each_box_is_a_record_of_its_pixels(tmp_path: Path) -> None:
    path = write(tmp_path, ANNOTATIONS)
    samples = samples_of(first_events(coco(path, crops=True, subject="who")))
    assert [(each.id, each.label, each.subject) for each in samples] == [
        ("1:2", "dog", "p1"),
        ("1:3", "dog", "p1"),
        ("2:1", "cat", "p0"),
        ("3:4", "cat", "p1"),
    ]
    whole = np.concatenate([picture(1), picture(51)], axis=1)
    assert np.array_equal(samples[0].image, whole[1:6, 2:6])
    assert np.array_equal(samples[1].image, whole[2:6, 10:14])
    wider = samples_of(first_events(coco(path, crops=True, margin=0.5)))
    assert np.array_equal(wider[1].image, whole[0:8, 8:16])
    assert [each.id for each in samples_of(first_events(coco(path, crops=True, min_side=5)))] == ["3:4"]


@pytest.mark.parametrize("crops", [False, True])
def test_it_keeps_the_promises_of_a_source(tmp_path: Path, crops: bool) -> None:
    path = write(tmp_path, ANNOTATIONS)
    check_source(lambda: named_source("coco", {"path": path, "crops": crops}, batch_size=2))


def test_boxes_that_cannot_be_cut_out_are_bad_records(tmp_path: Path) -> None:
    path = write(
        tmp_path, [box(1, 1, 7, [20, 0, 4, 4]), box(2, 2, 7, [0, 0, 4, 4]), box(3, 3, 7, [0, 0, 4, 4])]
    )
    write_picture(tmp_path / "photos" / "2.png", 2)
    (tmp_path / "photos" / "3.png").unlink()
    found, reasons = read(path, crops=True)
    assert found == []
    words = ["lies outside of '1.png'", "8 x 8 pixels, its annotations 16 x 8", "3.png"]
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True, True, True]


def test_images_outside_of_the_folder_are_bad_records(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside = {"id": 9, "file_name": "../../secret.png"}
    path = write(tmp_path / "in", [], count=1)
    content = json.loads(Path(path).read_text())
    content["images"].append(outside)
    Path(path).write_text(json.dumps(content))
    assert "lies outside" in read(path)[1][0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": None}, "no list images"),
        ({"annotations": [{"image_id": 1, "caption": "a cat"}]}, "entry 0 of annotations has no id"),
        ({"annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}, "has no category_id"),
        ({"annotations": [box(1, 99, 7)]}, "annotation 1 has an unknown image_id: 99"),
        ({"annotations": [box(1, 1, 99)]}, "annotation 1 has an unknown category_id: 99"),
        ({"annotations": [box(1, 1, 7, [0, 0, 4])]}, "bbox of annotation 1 is not four numbers"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "2 images have 1 different"),
    ],
)
def test_what_is_not_of_the_format_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        coco(write(tmp_path, **{"annotations": [], **changed}))


def test_wrong_files_and_folders_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, ANNOTATIONS)
    with pytest.raises(ConfigError, match="there is no file"):
        coco(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"has no image 'photos/1\.png'") as refused:
        coco(path, root=str(tmp_path / "photos"))
    assert "root is the folder" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="is not a folder"):
        coco(path, root=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="margin is -1"):
        coco(path, margin=-1)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        coco(str(tmp_path / "bad.json"))
