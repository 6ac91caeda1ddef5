"""A JSON file in the format of COCO: its images, and the annotations of each by the names of categories."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.errors import SourceError

Box: TypeAlias = tuple[float, float, float, float]
"""x, y of the upper left corner, width and height, in pixels."""

_FORMAT = "expected an object with the lists images, annotations and categories"


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image's id, its file, its width and height in pixels where given, and its whole entry."""

    id: str
    file_name: str
    size: tuple[int, int] | None
    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An annotation's id, its category's name, its box where it has one, and whether it is of a crowd."""

    id: str
    category: str
    box: Box | None
    crowd: bool


@dataclass(frozen=True, slots=True)
class CocoFile:
    """The content of a file; `annotations` are by the id of their image, in the order of the file."""

    name: str
    images: Sequence[CocoImage]
    annotations: Mapping[str, Sequence[CocoAnnotation]]


def read_coco(file: Path) -> CocoFile:
    """Return the content of a file. Raise SourceError, with the entry, where it does not have the format."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_hook=_without_masks)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{file.name} is not JSON: {error}", hint=_FORMAT) from error
    categories = {
        each["id"]: str(each["name"]) for each in _entries(file, content, "categories", "id", "name")
    }
    images = [_image(file, each) for each in _entries(file, content, "images", "id", "file_name")]
    annotations: dict[str, list[CocoAnnotation]] = {image.id: [] for image in images}
    if len(annotations) < len(images):
        raise SourceError(f"{file.name}: {len(images)} images have {len(annotations)} different ids")
    for entry in _entries(file, content, "annotations", "id", "image_id", "category_id"):
        image = str(entry["image_id"])
        if entry["category_id"] not in categories or image not in annotations:
            key = "image_id" if image not in annotations else "category_id"
            raise SourceError(f"{file.name}: annotation {entry['id']} has an unknown {key}: {entry[key]}")
        annotations[image].append(_annotation(file, entry, categories[entry["category_id"]]))
    return CocoFile(file.name, images, annotations)


def _without_masks(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)  # most of such a file, and not used
    return entry


def _entries(file: Path, content: Any, key: str, *needed: str) -> list[dict[str, Any]]:
    """Return a list of the file. Raise SourceError where an entry lacks one of the keys."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise SourceError(f"{file.name} has no list {key}", hint=_FORMAT)
    for number, entry in enumerate(found):
        for each in needed:
            value = entry.get(each) if isinstance(entry, dict) else None
            if value is None or isinstance(value, dict | list):
                raise SourceError(f"{file.name}: entry {number} of {key} has no {each}", hint=_FORMAT)
    return found


def _image(file: Path, entry: Mapping[str, Any]) -> CocoImage:
    width, height = entry.get("width"), entry.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    if not isinstance(entry["file_name"], str):
        raise SourceError(f"{file.name}: the file_name of image {entry['id']} is no text", hint=_FORMAT)
    return CocoImage(str(entry["id"]), entry["file_name"], size, entry)


def _annotation(file: Path, entry: Mapping[str, Any], category: str) -> CocoAnnotation:
    box = entry.get("bbox") or None
    if box is not None and not _is_box(box):
        raise SourceError(f"{file.name}: the bbox of annotation {entry['id']} is not four numbers")
    shape = None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return CocoAnnotation(str(entry["id"]), category, shape, bool(entry.get("iscrowd")))


def _is_box(value: Any) -> bool:
    numeric = isinstance(value, list) and all(isinstance(each, numbers.Real) for each in value)
    return numeric and len(value) == 4 and all(math.isfinite(each) for each in value)
