"""Images in folders named after their classes, ImageNet-R and ImageNet-Sketch among them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from streamcl.errors import SourceError
from streams.datasets.layout import FolderLayout, folders, image_files, split_by_group
from streams.replay.collection import Collection, groups_of

Layout: TypeAlias = Literal["classes", "domains"]
Found: TypeAlias = list[tuple[Path, str, str]]  # path, class, domain ("" without domains)

_WORDNET = "folders named by WordNet id, such as n01443537/*.jpg"
_HINT = "point root at such a folder; layout: domains expects one level more than layout: classes"
_LAYOUTS: dict[Layout, FolderLayout] = {
    "classes": FolderLayout("<class>/*.jpg, or train/<class>/*.jpg and test/<class>/*.jpg", _HINT),
    "domains": FolderLayout(
        "<domain>/<class>/*.jpg, or train/<domain>/<class>/*.jpg and test/<domain>/<class>/*.jpg", _HINT
    ),
}


def image_folder(
    root: str | Path, layout: Layout = "classes", test_percent: float = 20, seed: int = 0
) -> tuple[Collection, Collection]:
    """Read any folder of `<class>/*` or, with layout "domains", of `<domain>/<class>/*`.

    Where `root` holds a folder train and one named test or val these are the sides; otherwise
    `test_percent` of each class (of each domain) is held out, seeded, and no file is moved.
    Ids are paths relative to `root`.
    """
    expected = _LAYOUTS[layout]
    base = expected.find_root(root)
    test_side = next((base / name for name in ("test", "val") if (base / name).is_dir()), None)
    if test_side is None or not (base / "train").is_dir():
        return _split(base, _walk(base, layout), test_percent, seed, expected, name=base.name)
    train, test = _walk(base / "train", layout), _walk(test_side, layout)
    if not train:
        raise expected.refuse(base / "train")
    return _collection(base, base.name, train + test).split(np.arange(len(train), len(train) + len(test)))


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


def _walk(root: Path, layout: Layout) -> Found:
    if layout == "classes":
        return [(path, folder.name, "") for folder in folders(root) for path in image_files(folder)]
    return [
        (path, label, domain.name) for domain in folders(root) for path, label, _ in _walk(domain, "classes")
    ]


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
    return Collection(
        name=name,
        images=[path for path, _, _ in found],
        labels=labels.index,
        classes=labels.names,
        ids=tuple(path.relative_to(base).as_posix() for path, _, _ in found),
        domains=groups_of([domain for _, _, domain in found], domains) if domains != [""] else None,
    )
