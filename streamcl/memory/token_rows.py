"""Rows of tokens that lie in several arrays, in memory or in a file without a name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.errors import CheckpointError
from streamcl.memory.quantised_tokens import QuantisedTokens, TokenArray

_Indices: TypeAlias = npt.NDArray[np.int64]

_PREFIX = ".tmp-latents-"
"""Of a file's name on a system where it has one for a moment; the next run in the folder removes it."""


class TokenRows:
    """Tokens of n samples, of which each is a row of one of several segments; a selection copies none.

    Args:
        segments: of equal shapes but for their number of rows.
        numbers: int64 [n], each sample's segment.
        rows: int64 [n], its row there.
    """

    def __init__(self, segments: tuple[QuantisedTokens, ...], numbers: _Indices, rows: _Indices) -> None:
        self._segments, self._numbers, self._rows = segments, numbers, rows

    @classmethod
    def of(cls, segments: Iterable[QuantisedTokens]) -> TokenRows:
        """Return all rows of segments, in order."""
        segments = tuple(segments)
        sizes = [len(segment) for segment in segments]
        numbers = np.repeat(np.arange(len(segments)), sizes)
        return cls(segments, numbers, np.concatenate([np.arange(0), *map(np.arange, sizes)]))

    @classmethod
    def concat(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Return the rows of several one after another."""
        known: dict[int, int] = {}
        segments: list[QuantisedTokens] = []
        numbers = [np.arange(0)]
        for part in parts:
            for segment in part._segments:
                if known.setdefault(id(segment), len(segments)) == len(segments):
                    segments.append(segment)
            own = np.array([known[id(segment)] for segment in part._segments], np.int64)
            numbers.append(own[part._numbers])
        rows = np.concatenate([np.arange(0), *(part._rows for part in parts)])
        return cls(tuple(segments), np.concatenate(numbers), rows)

    def select(self, rows: Any) -> TokenRows:
        """Return some of the samples, by a slice, a mask or an array of places."""
        return TokenRows(self._segments, self._numbers[rows], self._rows[rows])

    def __getitem__(self, rows: Any) -> QuantisedTokens:
        """Return a copy of some samples' tokens, in memory."""
        numbers, places = self._numbers[rows], self._rows[rows]
        codes, scales = (_empty(part, len(places)) for part in _parts(self._segments[0]))
        for number in np.unique(numbers).tolist():
            here, segment = np.flatnonzero(numbers == number), self._segments[number]
            codes[here], scales[here] = segment.codes[places[here]], segment.scales[places[here]]
        return QuantisedTokens(codes, scales)

    def restored(self) -> TokenArray:
        """Return float32 [n, N, d], the tokens up to what their codes have lost."""
        return self[:].restored()

    def as_segment(self) -> QuantisedTokens:
        """Return the tokens as one segment: the very one that they are, or a copy in memory."""
        numbers = np.unique(self._numbers)
        if len(numbers) == 1:
            segment = self._segments[int(numbers[0])]
            if np.array_equal(self._rows, np.arange(len(segment))):
                return segment
        return self[:]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        sizes = np.array([segment.nbytes // max(len(segment), 1) for segment in self._segments], np.int64)
        return int(sizes[self._numbers].sum())

    def __len__(self) -> int:
        return len(self._rows)


def final_segment(segment: QuantisedTokens, folder: Path | None) -> QuantisedTokens:
    """Return a segment that cannot be changed, mapped from a file without a name, which ends with its use.

    One that is read-only is returned as it is. Raise CheckpointError where it cannot be written. It is mapped
    once it is written, so that a disk which is full is noticed here and never later.

    Args:
        segment: of one sample or more.
        folder: of the file; None: the segment stays in memory.
    """
    if not segment.codes.flags.writeable:
        return segment
    if folder is None:
        for part in _parts(segment):
            part.setflags(write=False)
        return segment
    try:
        return _mapped(segment, folder)
    except OSError as error:
        message = f"stored latents could not be written to {folder}: {error.strerror or error}"
        hint = "mend the disk; the same command then continues from the last checkpoint"
        raise CheckpointError(message, hint=hint) from error


def _mapped(segment: QuantisedTokens, folder: Path) -> QuantisedTokens:
    with tempfile.TemporaryFile(dir=folder, prefix=_PREFIX) as file:
        for part in (segment.scales, segment.codes):  # float32 first: its place must be a multiple of 4
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        file.flush()
        content = mmap.mmap(file.fileno(), segment.nbytes, access=mmap.ACCESS_READ)
    codes, scales = _parts(segment)
    return QuantisedTokens(
        np.frombuffer(content, codes.dtype, offset=scales.nbytes).reshape(codes.shape),
        np.frombuffer(content, scales.dtype, count=scales.size).reshape(scales.shape),
    )


def _parts(segment: QuantisedTokens) -> tuple[npt.NDArray[Any], TokenArray]:
    return segment.codes, segment.scales


def _empty(part: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return np.empty((count, *part.shape[1:]), part.dtype)
