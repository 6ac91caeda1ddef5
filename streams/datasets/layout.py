"""What readers of folders share: finding the root, listing images, splitting without moving a file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamcl.errors import ConfigError, SourceError
from streams.replay.collection import Indices

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def find_root(root: str | Path, inside: Sequence[str], expected: str, get: str) -> Path:
    """`root`, or the first of the folders `inside` it that is there.

    Raises SourceError naming the expected layout and how to `get` the data where `root` is no folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}; expected {expected}", hint=get)
    return next((path / name for name in inside if (path / name).is_dir()), path)


def refuse_layout(root: Path, expected: str, get: str) -> SourceError:
    """The error for a folder that is there and holds something else; names what was found."""
    found = sorted(entry.name for entry in root.iterdir())[:5]
    listed = f"found {', '.join(found)}" if found else "it is empty"
    return SourceError(f"{root} does not hold {expected}; {listed}", hint=get)


def folders(root: Path) -> list[Path]:
    """The folders directly inside, by name; hidden ones left out."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The image files directly inside, by name; hidden ones left out."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def split_by_group(groups: npt.NDArray[np.int64], names: Sequence[str], percent: float, seed: int) -> Indices:
    """Positions (ascending) of the test side: `percent` of each group, seeded by the group's name.

    groups: int64 [N], an index into names. A group's split does not depend on which others there are. A
    group of two or more has an image on either side when 0 < percent < 100.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"the share of test images is {percent}, expected a percentage from 0 to 100")
    chosen = [np.zeros(0, np.int64)]
    for code in np.unique(groups):
        members = np.flatnonzero(groups == code)
        rng = np.random.default_rng([seed, zlib.crc32(names[code].encode())])
        chosen.append(rng.permutation(members)[: _share(len(members), percent)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def others(length: int, positions: Indices) -> Indices:
    """Positions from 0 to length - 1 that are not among the given ones, ascending."""
    kept = np.ones(length, bool)
    kept[positions] = False
    return np.flatnonzero(kept).astype(np.int64)


def _share(size: int, percent: float) -> int:
    share = round(size * percent / 100)
    return min(max(share, 1), size - 1) if 0 < percent < 100 and size > 1 else share
