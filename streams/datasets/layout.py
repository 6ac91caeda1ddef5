"""Shared by readers of folders: find the root, list images, split without moving a file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamcl.errors import BadRecord, ConfigError, SourceError
from streams.replay.collection import Indices
from streams.user.images import image_suffixes


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """The layout in which a data set is unpacked.

    expected: the layout in words. hint: how to get the data. inside: names of folders, any of which may hold
    the data inside the folder that the user names.
    """

    expected: str
    hint: str
    inside: tuple[str, ...] = ()

    def find_root(self, root: str | Path) -> Path:
        """Return `root`, or the first of the folders `inside` it that exists.

        Raise SourceError, with the expected layout and the hint, where `root` is not a folder.
        """
        path = Path(root).expanduser()
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise SourceError(f"{path} {what}; expected {self.expected}", hint=self.hint)
        return next((path / name for name in self.inside if (path / name).is_dir()), path)

    def refuse(self, folder: Path) -> SourceError:
        """Return the error for a folder that holds something else; it names what was found."""
        found = sorted(entry.name for entry in folder.iterdir())[:5]
        listed = f"found {', '.join(found)}" if found else "it is empty"
        return SourceError(f"{folder} does not hold {self.expected}; {listed}", hint=self.hint)


def path_below(root: Path, place: str) -> Path:
    """Return the file at a place below `root`, a resolved path. Raise BadRecord where it lies elsewhere."""
    path = (root / place).resolve()
    if not path.is_relative_to(root):
        raise BadRecord(f"{place[:200]!r} lies outside of {root}", hint="give its folder as root")
    return path


def folders(root: Path) -> list[Path]:
    """Return the folders directly inside, by name, without hidden ones."""
    return _visible(root).folders


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly inside, by name, without hidden ones."""
    return [path for path in visible_files(folder) if is_image_file(path)]


def visible_files(folder: Path) -> list[Path]:
    """Return the files directly inside, by name, without hidden ones and links that lead nowhere."""
    return _visible(folder).files


def files_below(folder: Path) -> list[Path]:
    """Return the visible files inside, folder by folder: first the direct ones. A link in a circle ends."""
    return list(_below(folder, frozenset()))


def _below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    inside = _visible(folder)
    yield from inside.files
    for inner in inside.folders:
        yield from _below(inner, above | {here})


class _Visible(NamedTuple):
    files: list[Path]
    folders: list[Path]


def _visible(folder: Path) -> _Visible:
    """Return what is directly inside, by name."""
    with os.scandir(folder) as entries:
        kinds = {each.name: _kind_of(each) for each in entries if not each.name.startswith(".")}
    names = sorted(kinds)
    return _Visible(*([folder / each for each in names if kinds[each] == kind] for kind in _Visible._fields))


def _kind_of(entry: os.DirEntry[str]) -> str | None:
    """Return 'files' or 'folders'; None for a link that leads nowhere, a socket and the like."""
    try:
        return "folders" if entry.is_dir() else "files" if entry.is_file() else None
    except OSError:  # a link in a circle
        return None


def is_image_file(path: Path) -> bool:
    """Return whether the name has an extension of a picture that `decode` reads."""
    return path.suffix.lower() in image_suffixes()


def readable_name(path: str) -> str:
    r"""Return the path with bytes that are no UTF-8 escaped, so that it can be an id or a class.

    >>> readable_name(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
    True
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def split_by_group(groups: npt.NDArray[np.int64], names: Sequence[str], percent: float, seed: int) -> Indices:
    """Return the positions of the test side, int64 [T] ascending: a share of each group, seeded by its name.

    A group's split does not depend on which others there are. A group of two or more has an image on either
    side when 0 < percent < 100.

    Args:
        groups: int64 [N], the group of each image as an index into `names`.
        names: the groups'.
        percent: the share of test images, 0 to 100.
        seed: of all groups.

    Raises:
        ConfigError: another percentage.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"the share of test images is {percent}, expected a percentage from 0 to 100")
    chosen = [np.zeros(0, np.int64)]
    for code in np.unique(groups):
        members = np.flatnonzero(groups == code)
        rng = np.random.default_rng([seed, zlib.crc32(names[code].encode())])
        share = round(len(members) * percent / 100)
        if 0 < percent < 100 and len(members) > 1:
            share = min(max(share, 1), len(members) - 1)
        chosen.append(rng.permutation(members)[:share])
    return np.sort(np.concatenate(chosen)).astype(np.int64)
