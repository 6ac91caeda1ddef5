"""Large arrays of a checkpoint that do not change: a file each, named by its content and mapped when read."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.errors import CheckpointError
from streamcl.storage.plain_state import WIDTHS, Array

SHARED_BYTES = 1 << 16
"""A read-only array of at least so many bytes has a file of its own, which later checkpoints may link to."""

ARRAY_FILE = re.compile(r"array-([0-9a-f]{64})\.bin")
"""The name of such a file, with the sha256 of its content."""


class MappedArray(np.ndarray[Any, Any]):
    """A read-only array in a file of a checkpoint.

    sha256: of the file when it was verified; None for a part of such an array, or for what was made of it.
    """

    sha256: str | None = None


def shared_arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return those of a state's packed arrays, of any shape, with a file of their own: large and read-only.

    Args:
        arrays: by number, of any shape.
    """
    return {
        number: array
        for number, array in arrays.items()
        if not array.flags.writeable and array.nbytes >= SHARED_BYTES
    }


def array_files(arrays: Mapping[str, Array]) -> tuple[dict[str, memoryview], dict[str, Any]]:
    """Return the content of each file by name, and the manifest's entry for each array by number.

    Equal content is one file. Raise CheckpointError for a mapped array whose file has changed meanwhile.

    Args:
        arrays: by number, of any shape, little-endian and in C order, as `pack` returns them.
    """
    content: dict[str, memoryview] = {}
    entries = {}
    for number, array in arrays.items():
        data = array.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(data).hexdigest()
        _confirm_unchanged(array, digest)
        content[f"array-{digest}.bin"] = data
        entries[number] = {
            "member": f"array-{digest}.bin",
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
    return content, entries


def digest_in(name: str) -> str | None:
    """Return the sha256 in the name of an array's file; None for another name."""
    found = ARRAY_FILE.fullmatch(name)
    return found[1] if found else None


def map_array(path: Path, size: int, entry: Mapping[str, Any]) -> MappedArray:
    """Return the array of a manifest's entry, once its file has the content that its name says.

    Raise ValueError, TypeError or OverflowError where the file or the entry is not sound, OSError where the
    file cannot be read.

    Args:
        path: the file.
        size: bytes that it must have.
        entry: its "dtype" and "shape".
    """
    dtype = np.dtype(str(entry["dtype"]))
    if dtype.str != entry["dtype"] or str(dtype.itemsize) not in WIDTHS.get(dtype.kind, ""):
        raise ValueError(f"{entry['dtype']!r} is no kind of array that a state may hold")
    array = np.frombuffer(map_verified(path, size), dtype).reshape(
        [max(int(side), 0) for side in entry["shape"]]
    )
    found = array.view(MappedArray)
    found.sha256 = digest_in(path.name)
    return found


def map_verified(path: Path, size: int) -> mmap.mmap:
    """Return a read-only map of an array's file with `size` bytes. Raise ValueError where it is another.

    The file is read, not mapped, for its sha256: a disk that fails is an OSError then, and no signal.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would block
    with io.FileIO(os.open(path, flags)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{path.name} is not a plain file")
        if facts.st_size != size:
            raise ValueError(f"{path.name} has {facts.st_size} bytes, not {size}")
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != digest_in(path.name):
            raise ValueError(f"{path.name} has sha256 {found[:12]}, which is not that of its name")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _confirm_unchanged(array: Array, digest: str) -> None:
    known = array.sha256 if isinstance(array, MappedArray) else None
    if known not in (None, digest):
        raise CheckpointError(
            f"array-{known}.bin has been changed on disk since this process has loaded it",
            hint="stop all that writes in the run directory; the same command then continues from a "
            "checkpoint that is whole",
        )
