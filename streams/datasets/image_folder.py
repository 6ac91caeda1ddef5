"""Images in folders named after their classes, ImageNet-R and ImageNet-Sketch among them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from streamcl.errors import SourceError
from streamcl.requests.terms import canonical_name
from streams.datasets.layout import (
    FolderLayout,
    files_below,
    folders,
    is_image_file,
    readable_name,
    split_by_group,
    visible_files,
)
from streams.replay.collection import Collection, groups_of

Layout: TypeAlias = Literal["classes", "domains", "nested"]
Found: TypeAlias = list[tuple[Path, str, str]]  # path, class, domain ("" without domains)

logger = logging.getLogger(__name__)

TEST_SIDES = ("test", "val", "valid", "validation")
_WORDNET = "folders named by WordNet id, such as n01443537/*.jpg"
_HINT = "point root at such a folder; layout: domains expects one level more than layout: classes"
_LAYOUTS: dict[Layout, FolderLayout] = {
    "classes": FolderLayout("<class>/*.jpg, or train/<class>/*.jpg and test/<class>/*.jpg", _HINT),
    "domains": FolderLayout(
        "<domain>/<class>/*.jpg, or train/<domain>/<class>/*.jpg and test/<domain>/<class>/*.jpg", _HINT
    ),
    "nested": FolderLayout("<class>/<folder>/*.jpg", _HINT),
}
_DEEPER = (
    "the images lie a folder deeper: point root at the folder of classes, or say layout: domains where the "
    "inner folders are the classes and layout: nested where the outer ones are"
)
_LISTED = 5  # kinds of files, or names, in one message


def image_folder(
    root: str | Path, layout: Layout = "classes", test_percent: float = 20, seed: int = 0
) -> tuple[Collection, Collection]:
    """Read any folder of `<class>/*` or, with layout "domains", of `<domain>/<class>/*`.

    Where `root` holds a folder train and one named test (or val, valid, validation) these are the sides;
    otherwise `test_percent` of each class (of each domain) is held out, seeded, and no file is moved. Images
    in folders inside a class belong to it. Where all images lie in such folders, the layout "nested" says
    that the outer folders are the classes. Files that are left out are counted in a log message. Ids are
    paths relative to `root`, with bytes that are no UTF-8 escaped. Raise SourceError where no images are.
    """
    expected = _LAYOUTS[layout]
    base = expected.find_root(root)
    test_side = next((base / name for name in TEST_SIDES if (base / name).is_dir()), None)
    if test_side is None or not (base / "train").is_dir():
        _report_left_out(base, [base], layout)
        return _split(base, _walk(base, layout), test_percent, seed, expected, name=base.name)
    train, test = _walk(base / "train", layout), _walk(test_side, layout)
    if not train:
        raise expected.refuse(base / "train")
    _report_left_out(base, [base / "train", test_side], layout)
    both = _collection(base, base.name, train + test)
    return both.split(np.arange(len(train), len(train) + len(test)))


def imagenet_r(root: str | Path, seed: int = 0) -> tuple[Collection, Collection]:
    """Read ImageNet-R (arXiv 2006.16241): 30,000 renditions of 200 classes; 80 % for training."""
    hint = "`streamcl fetch imagenet-r` downloads it (2 GB); give the folder that it names as root"
    return _wordnet(root, "imagenet-r", FolderLayout(_WORDNET, hint, ("imagenet-r",)), seed)


def imagenet_sketch(root: str | Path, seed: int = 0) -> tuple[Collection, Collection]:
    """Read ImageNet-Sketch (arXiv 1905.13549): 50,889 sketches of 1,000 classes; 80 % for training."""
    hint = "`streamcl fetch imagenet-sketch` says where to get it by hand; unpack it and give its folder"
    layout = FolderLayout(_WORDNET, hint, ("sketch", "imagenet-sketch"))
    return _wordnet(root, "imagenet-sketch", layout, seed)


def _wordnet(root: str | Path, name: str, expected: FolderLayout, seed: int) -> tuple[Collection, Collection]:
    base = expected.find_root(root)
    found = [item for item in _walk(base, "classes") if item[1][:1] == "n" and item[1][1:].isdigit()]
    return _split(base, found, 20, seed, expected, name=name)


def _class_name(folder: Path) -> str:
    """Return the folder's name in the one spelling of a class; archives of macOS decompose characters."""
    return canonical_name(readable_name(folder.name))


def _walk(root: Path, layout: Layout) -> Found:
    if layout == "domains":
        return [
            (path, label, _class_name(domain))
            for domain in folders(root)
            for path, label, _ in _walk(domain, "nested")
        ]
    found = [
        (path, _class_name(folder), "")
        for folder in folders(root)
        for path in files_below(folder)
        if is_image_file(path)
    ]
    if layout == "classes" and found and all(path.parent.parent != root for path, _, _ in found):
        place = readable_name(found[0][0].relative_to(root).as_posix())
        raise SourceError(f"{root} does not hold {_LAYOUTS[layout].expected}; found {place}", hint=_DEEPER)
    return found


def _report_left_out(base: Path, sides: Sequence[Path], layout: Layout) -> None:
    """Log how many files below `base` are no records: other kinds, beside the classes, of other sides."""
    other = [path for side in sides for folder in folders(side) for path in files_below(folder)]
    kinds = Counter(path.suffix.lower() or "no extension" for path in other if not is_image_file(path))
    if kinds:
        named = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(_LISTED))
        logger.info("%s: %d files are left out, no images by their names: %s", base, kinds.total(), named)
    domains = [folder for side in sides for folder in folders(side)] if layout == "domains" else []
    outer = {base, *sides, *domains}
    beside = [path for folder in outer for path in visible_files(folder) if is_image_file(path)]
    if beside:
        logger.warning("%s: %d images are left out, they lie in no class's folder", base, len(beside))
    if base in sides:
        return
    for folder in folders(base):
        count = sum(map(is_image_file, files_below(folder))) if folder not in sides else 0
        if count:
            names = " and ".join(side.name for side in sides)
            logger.warning("%s: %d images are left out, the sides are %s", folder, count, names)


def _split(
    base: Path, found: Found, percent: float, seed: int, expected: FolderLayout, *, name: str
) -> tuple[Collection, Collection]:
    if not found:
        raise expected.refuse(base)
    both = _collection(base, name, found)
    cells = groups_of([f"{domain}/{label}" if domain else label for _, label, domain in found])
    test = split_by_group(cells.index, cells.names, percent, seed)
    return both.split(test)


def _collection(base: Path, name: str, found: Found) -> Collection:
    labels = groups_of([label for _, label, _ in found], sorted({label for _, label, _ in found}))
    domains = sorted({domain for _, _, domain in found})
    if len(labels.names) < 2 and len(found) < 2:
        raise SourceError(f"{base} holds one image; a stream needs more")
    paths = [path.relative_to(base).as_posix() for path, _, _ in found]
    ids = tuple(map(readable_name, paths))
    if escaped := [name for name, path in zip(ids, paths, strict=True) if name != path]:
        shown = ", ".join(escaped[:_LISTED])
        logger.warning("%s: the names of %d images are no UTF-8; their ids are %s", base, len(escaped), shown)
    return Collection(
        name=readable_name(name),
        images=[path for path, _, _ in found],
        labels=labels.index,
        classes=labels.names,
        ids=ids,
        domains=groups_of([domain for _, _, domain in found], domains) if domains != [""] else None,
    )
