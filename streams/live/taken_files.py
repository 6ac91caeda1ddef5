"""The set of files that a reader has taken, as digests: a position that knows no order of names or times."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State

BLOCK = 4096  # entries of the position that are frozen together, so that a state copies few


class ListedFile(NamedTuple):
    """A file or object as a listing finds it.

    path: below the root, with slashes. size: in bytes. version: changes with the content: the time of the
    last change in nanoseconds, or the ETag of an object.
    """

    path: str
    size: int
    version: int | str


class TakenFiles:
    """The files taken, each with its content; a state shares all but its last few entries.

    A path and a content are kept as digests of 64 bits, salted with the stream's name, because paths may name
    people and the set goes into checkpoints.

    Args:
        name: of the stream.
        state: of another set, as `state` returned it.
    """

    def __init__(self, name: str, state: Mapping[str, Any]) -> None:
        self._salt = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
        self._blocks: list[npt.NDArray[np.uint64]] = [
            np.asarray(state[block], np.uint64) for block in sorted(state)
        ]
        rows = [row for block in self._blocks for row in block.tolist()]
        self._content: dict[int, int] = dict(rows)
        unfilled = self._blocks and len(self._blocks[-1]) < BLOCK
        self._tail: list[tuple[int, int]] = (
            [(p, c) for p, c in self._blocks.pop().tolist()] if unfilled else []
        )

    def has_path(self, file: ListedFile) -> bool:
        """Return whether a file of that path was taken, with whatever content."""
        return self._path(file) in self._content

    def has_content(self, file: ListedFile) -> bool:
        """Return whether the file was taken with the content that it has now."""
        return self._content.get(self._path(file)) == self._version(file)

    def add(self, file: ListedFile) -> None:
        """Take a file; another content of the same path is replaced."""
        path, content = self._path(file), self._version(file)
        self._content[path] = content
        self._tail.append((path, content))
        if len(self._tail) == BLOCK:
            self._blocks.append(np.array(self._tail, np.uint64))
            self._tail = []

    def state(self) -> State:
        """Return the entries as arrays uint64 [n, 2]."""
        tail = [np.array(self._tail, np.uint64)] if self._tail else []
        return {f"{index:09}": block for index, block in enumerate([*self._blocks, *tail])}

    def _path(self, file: ListedFile) -> int:
        return self._digest(file.path.encode(errors="surrogatepass"))

    def _version(self, file: ListedFile) -> int:
        return self._digest(f"{file.size} {file.version}".encode())

    def _digest(self, data: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(data, key=self._salt, digest_size=8).digest(), "big")
