"""Reads annotations in the format of COCO: images of one category, or the boxes in them, as records."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.errors import BadRecord, ConfigError
from streamcl.events import Pixels
from streams.datasets.coco_file import Box, CocoAnnotation, CocoFile, CocoImage, read_coco
from streams.datasets.layout import path_below
from streams.user.images import ImageLimits, decode
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

logger = logging.getLogger(__name__)

PROBED_IMAGES = 20  # images of which one must exist, so that a wrong root is an error at the start


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record without its pixels. label: None where nobody has labelled it; or why it has none."""

    id: str
    image: CocoImage
    label: str | BadRecord | None
    box: Box | None = None


Entries: TypeAlias = Sequence[_Entry]


def coco(
    path: str,
    root: str | None = None,
    *,
    crops: bool = False,
    margin: float = 0.0,
    min_side: float = 1.0,
    unlabelled: Literal["keep", "skip"] = "keep",
    subject: str | None = None,
    domain: str | None = None,
    name: str = "coco",
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> IterableSource:
    """Return a source of the images, or of the boxes, of an annotations file, in the order of its images.

    An image whose annotations all have one category is a record with that label; its id is the image's. One
    with several categories is a bad record. With `crops` each annotation is a record of its box's pixels,
    with the id "<image>:<annotation>"; those of crowds, and images without boxes, are left out.

    Args:
        path: of the JSON file, with images, annotations and categories.
        root: the folder to which each `file_name` is relative, that of the JSON file where it is None.
        crops: whether each box is a record.
        margin: added on each side of a box, as a share of its width and height.
        min_side: in pixels; boxes with a shorter side are left out.
        unlabelled: images without an annotation are kept as unlabelled records, or skipped.
        subject, domain: keys of an image's entry with the subject and the domain of its records.
        name: of the stream.
        batch_size: records in a batch.
        policy: limits, and what is done with bad records.

    Raises:
        ConfigError: there is no such file or folder, or none of the first images is in the folder.
        SourceError: the file does not have the format.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no file {path!r}")
    base = file.parent if root is None else Path(root).expanduser()
    content = read_coco(file)
    _check_root(base, content.images)
    if margin < 0:
        raise ConfigError(f"margin is {margin}, expected 0 or more")
    entries = _boxes(content, min_side) if crops else _images(content, unlabelled)
    rules = policy or RecordPolicy()
    records = AnnotatedImages(entries, base.resolve(), rules, margin, {"subject": subject, "domain": domain})
    return IterableSource(lambda: records, name=name, batch_size=batch_size, policy=rules)


class AnnotatedImages:
    """The records of entries by index; a picture is decoded when its record is converted."""

    def __init__(
        self,
        entries: Entries,
        root: Path,
        limits: ImageLimits,
        margin: float,
        facts: Mapping[str, str | None],
    ) -> None:
        self._entries, self._root, self._limits, self._margin = entries, root, limits, margin
        self._facts = {fact: key for fact, key in facts.items() if key is not None}
        self._last: tuple[Path, Pixels] | None = None  # boxes of a picture follow one another

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Any:
        entry = self._entries[index]
        if isinstance(entry.label, BadRecord):
            return entry.label
        try:
            path = path_below(self._root, entry.image.file_name)
        except BadRecord as bad:
            return BadRecord(f"{entry.id}: {bad}", hint=bad.hint)
        facts = {fact: entry.image.entry.get(key) for fact, key in self._facts.items()}
        box = entry.box
        image = path if box is None else _Crop(lambda: self._crop(entry.image, path, box))
        return {"image": image, "label": entry.label, "id": entry.id, **facts}

    def _crop(self, image: CocoImage, path: Path, box: Box) -> Pixels:
        """Return a box's pixels. Raise BadRecord where the picture has another size or the box is outside."""
        last = self._last
        if last is None or last[0] != path:
            last = self._last = path, decode(path, self._limits)
        height, width = last[1].shape[:2]
        if image.size is not None and image.size != (width, height):
            listed = f"{image.size[0]} x {image.size[1]}"
            raise BadRecord(
                f"{path.name!r} has {width} x {height} pixels, its annotations {listed}",
                hint="boxes would be elsewhere: annotate the file as it is, neither turned nor resized",
            )
        x, y, w, h = box
        left, right = _span(x - self._margin * w, x + w + self._margin * w, width)
        top, bottom = _span(y - self._margin * h, y + h + self._margin * h, height)
        if left >= right or top >= bottom:
            raise BadRecord(f"the box {list(box)} lies outside of {path.name!r}, {width} x {height} pixels")
        return last[1][top:bottom, left:right]


class _Crop:
    """Stands for pixels that are computed when the record is converted."""

    def __init__(self, compute: Callable[[], Pixels]) -> None:
        self._compute = compute

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self._compute(), dtype)


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the whole pixels that the interval touches, inside of a picture."""
    return max(0, math.floor(low)), min(size, math.ceil(high))


def _images(content: CocoFile, unlabelled: Literal["keep", "skip"]) -> Entries:
    """Return an entry an image. One with several categories is bad; these are counted in a log message."""
    entries = [_image_entry(image, content) for image in content.images]
    several = sum(isinstance(entry.label, BadRecord) for entry in entries)
    if several:
        logger.warning(
            "%s: %d of %d images have annotations of several categories and are bad records; "
            "crops: true makes each box a record",
            content.name,
            several,
            len(entries),
        )
    return [entry for entry in entries if entry.label is not None or unlabelled == "keep"]


def _image_entry(image: CocoImage, content: CocoFile) -> _Entry:
    labels = sorted({each.category for each in content.annotations.get(image.id, ())})
    label: str | BadRecord | None = labels[0] if labels else None
    if len(labels) > 1:
        shown = ", ".join(labels)[:200]
        label = BadRecord(f"image {image.id} has annotations of several categories: {shown}")
    return _Entry(image.id, image, label)


def _boxes(content: CocoFile, min_side: float) -> Entries:
    """Return an entry a box; what is left out is counted in a log message."""
    pairs = [(image, each) for image in content.images for each in content.annotations.get(image.id, ())]
    kept = [(image, each) for image, each in pairs if _is_wanted(each, min_side)]
    if len(kept) < len(pairs):
        left_out = len(pairs) - len(kept)
        logger.info(
            "%s: %d annotations are left out: crowds, or boxes that are too small", content.name, left_out
        )
    return [_Entry(f"{image.id}:{each.id}", image, each.category, each.box) for image, each in kept]


def _is_wanted(annotation: CocoAnnotation, min_side: float) -> bool:
    return annotation.box is not None and not annotation.crowd and min(annotation.box[2:]) >= min_side


def _check_root(base: Path, images: Sequence[CocoImage]) -> None:
    if not base.is_dir():
        raise ConfigError(f"{base} is not a folder", hint="root is the folder of the images")
    first = [image.file_name for image in images[:PROBED_IMAGES]]
    if first and not any((base / name).is_file() for name in first):
        hint = "root is the folder to which each file_name is relative"
        raise ConfigError(f"{base} has no image {first[0]!r}, nor those that follow", hint=hint)
