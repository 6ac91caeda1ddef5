"""The set of files that a reader has taken, as digests: a position that knows no order of names or times."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State

BLOCK = 4096  # entries of the position in one array

Digests: TypeAlias = npt.NDArray[np.uint64]
"""Pairs of a path's and a content's digest, [n, 2]."""
_NOTHING: Digests = np.empty((0, 2), np.uint64)


class ListedFile(NamedTuple):
    """A file or object as a listing finds it.

    path: below the root, with slashes. size: in bytes. version: changes with the content: the time of the
    last change in nanoseconds, or the ETag of an object.
    """

    path: str
    size: int
    version: int | str


def listed_file(root: Path, path: str) -> ListedFile | None:
    """Return the file below a folder as it is now; None where there is none.

    root: the folder. path: below it (any text). Its version is the time of the last change.
    """
    try:
        found = os.stat(f"{root}/{path}")  # noqa: PTH116 - a Path interns every name for good
    except (OSError, ValueError):
        return None
    return ListedFile(path, found.st_size, found.st_mtime_ns)


class TakenFiles:
    """The files taken, each with its content; a state shares all of its entries with the set.

    A path and a content are kept as digests of 64 bits, salted with the stream's name, because paths may name
    people and the set goes into checkpoints. 32 bytes a file are in memory.

    Args:
        name: of the stream.
        state: of another set, as `state` returned it.
    """

    def __init__(self, name: str, state: Mapping[str, Any]) -> None:
        salt = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        self._hash = hashlib.blake2b(key=salt, digest_size=8)
        blocks = [np.asarray(state[block], np.uint64).reshape(-1, 2) for block in sorted(state)]
        self._contents = _ContentIndex(np.concatenate([_NOTHING, *blocks]))
        last = blocks.pop() if blocks and len(blocks[-1]) < BLOCK else _NOTHING
        self._blocks: dict[str, Digests] = {_block_name(index): block for index, block in enumerate(blocks)}
        self._last, self._filled = np.empty((BLOCK, 2), np.uint64), len(last)
        self._last[: len(last)] = last

    def compare(self, file: ListedFile) -> Literal["new", "same", "changed"]:
        """Return whether no file of that path was taken, or one with that content, or with another."""
        content = self._contents.get(self._path(file))
        if content is None:
            return "new"
        return "same" if content == self._version(file) else "changed"

    def add(self, file: ListedFile) -> None:
        """Take a file; another content of the same path is replaced."""
        path, content = self._path(file), self._version(file)
        self._contents.put(path, content)
        self._last[self._filled] = (path, content)
        self._filled += 1
        if self._filled == BLOCK:
            self._blocks[_block_name(len(self._blocks))] = self._last
            self._last, self._filled = np.empty((BLOCK, 2), np.uint64), 0

    def state(self) -> State:
        """Return the entries as arrays uint64 [n, 2]; later ones do not change them."""
        if not self._filled:
            return dict(self._blocks)
        return {**self._blocks, _block_name(len(self._blocks)): self._last[: self._filled]}

    def _path(self, file: ListedFile) -> int:
        return self._digest(file.path.encode(errors="surrogatepass"))

    def _version(self, file: ListedFile) -> int:
        return self._digest(f"{file.size} {file.version}".encode())

    def _digest(self, data: bytes) -> int:
        keyed = self._hash.copy()  # half the time of a new one with its key
        keyed.update(data)
        return int.from_bytes(keyed.digest(), "big")


class _ContentIndex:
    """The content's digest by the path's, in sorted arrays: 16 bytes a file, where a dict takes 140.

    rows: pairs of path and content; of one path the last counts.
    """

    def __init__(self, rows: Digests) -> None:
        self._recent: dict[int, int] = {}  # newer than the arrays
        self._sort(rows)

    def get(self, path: int) -> int | None:
        """Return the content taken of a path; None where there is none."""
        if (recent := self._recent.get(path)) is not None:
            return recent
        place = bisect_left(self._paths, path)
        found = place < len(self._paths) and self._paths[place] == path
        return self._contents[place] if found else None

    def put(self, path: int, content: int) -> None:
        """Set the content of a path."""
        self._recent[path] = content
        if len(self._recent) == BLOCK:
            older = np.stack([np.asarray(self._paths), np.asarray(self._contents)], axis=1)
            self._sort(np.concatenate([older, np.array(list(self._recent.items()), np.uint64)]))
            self._recent = {}

    def _sort(self, rows: Digests) -> None:
        newest_first = rows[::-1]
        paths, places = np.unique(newest_first[:, 0], return_index=True)
        # A memoryview returns Python's integers, which bisect compares ten times as fast as numpy's.
        self._paths, self._contents = paths.data, newest_first[places, 1].copy().data


def _block_name(index: int) -> str:
    return f"{index:09}"
