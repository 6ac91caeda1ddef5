"""CUB-200-2011 (Wah et al., Caltech CNS-TR-2011-001): 11,788 photographs of 200 bird species."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from streamcl.errors import SourceError
from streams.datasets.layout import FolderLayout
from streams.replay.collection import Collection

_LAYOUT = FolderLayout(
    "CUB_200_2011/{images.txt, image_class_labels.txt, train_test_split.txt, images/}",
    "`streamcl fetch cub200` downloads it (1.1 GB); give the folder that it names as root",
    ("CUB_200_2011",),
)


def cub200(root: str | Path) -> tuple[Collection, Collection]:
    """Read the authors' train and test sides. Classes are species without numbers; ids are image paths."""
    base = _LAYOUT.find_root(root)
    if not (base / "images.txt").is_file():
        raise _LAYOUT.refuse(base)
    paths = {key: _inside(base, path) for key, path in _table(base / "images.txt").items()}
    labels = {key: int(value) for key, value in _table(base / "image_class_labels.txt").items()}
    training = {key: value == "1" for key, value in _table(base / "train_test_split.txt").items()}
    if not paths.keys() == labels.keys() == training.keys():
        raise SourceError(f"{base}: the three lists name different images", hint=_LAYOUT.hint)
    both = Collection(
        name="cub200",
        images=[base / "images" / path for path in paths.values()],
        labels=np.array([labels[key] - 1 for key in paths], np.int64),
        classes=_classes(paths, labels),
        ids=tuple(paths.values()),
    )
    return both.split(np.flatnonzero([not training[key] for key in paths]))


def _table(path: Path) -> dict[str, str]:
    """Read a file of `<image number> <value>` lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
        return {key: value.strip() for key, value in pairs}
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as `<number> <value>` lines: {error}", hint=_LAYOUT.hint
        ) from error


def _inside(base: Path, path: str) -> str:
    """Return the path; raise SourceError where it leaves images/."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise SourceError(f"{base / 'images.txt'} names {path!r}, which leaves the folder images/")
    return pure.as_posix()


def _classes(paths: dict[str, str], labels: dict[str, int]) -> tuple[str, ...]:
    """Return the species by class number, from the folder of each image: `001.Black_footed_Albatross/..`."""
    names = {labels[key]: path.split("/")[0].split(".", 1)[-1] for key, path in paths.items()}
    if sorted(names) != list(range(1, len(names) + 1)):
        raise SourceError(f"CUB-200 class numbers are {sorted(names)[:5]}..., expected 1 to {len(names)}")
    return tuple(names[number] for number in sorted(names))
