"""Tokens of images in 4, 8 or 16 bits an element, row by row: no sample's codes depend on another's."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

TokenDtype: TypeAlias = Literal["int4", "int8", "float16"]
TokenArray: TypeAlias = npt.NDArray[np.float32]

LARGEST_CODE = 127
"""Of int8: a token's largest element has it."""
STEP = 0.335
"""Step between the 16 codes of int4, in standard deviations: best for normal distributions (Max, 1960)."""
_BEYOND = np.float32(np.finfo(np.float16).max)  # a float16 would be infinite beyond it


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTokens:
    """Tokens of n samples in few bytes.

    With int4 a token is rotated by signs and Walsh-Hadamard transforms first, which spreads outliers over its
    elements as in QuaRot (arXiv 2404.00456), and two codes are packed into a byte.

    Attributes:
        codes: uint8 [n, N, d / 2] for int4, int8 or float16 [n, N, d].
        scales: float32 [n, N, 1], by which the codes of a token are multiplied; [n, 0, 1] for float16.
    """

    codes: npt.NDArray[Any]
    scales: TokenArray

    @classmethod
    def of(cls, tokens: TokenArray, dtype: TokenDtype) -> QuantisedTokens:
        """Return tokens in fewer bytes; each row depends on its sample alone.

        Args:
            tokens: float32 [n, N, d]; d is even for int4.
            dtype: of the codes.
        """
        if dtype == "float16":
            codes = tokens.clip(-_BEYOND, _BEYOND).astype(np.float16)
            return cls(codes, np.empty((len(tokens), 0, 1), np.float32))
        if dtype == "int4":
            return cls._of_int4(np.ascontiguousarray(tokens))
        scales = np.abs(tokens).max(axis=-1, keepdims=True) / np.float32(LARGEST_CODE)  # [n, N, 1]
        safe = np.where(scales > 0, scales, np.float32(1))
        return cls(np.rint(tokens / safe).astype(np.int8), scales.astype(np.float32))

    @classmethod
    def _of_int4(cls, tokens: TokenArray) -> QuantisedTokens:
        rotated = _rotated(tokens * _signs(tokens.shape[-1]))
        scales = np.sqrt(np.square(rotated).mean(axis=-1, keepdims=True)) * np.float32(STEP)  # [n, N, 1]
        safe = np.where(scales > 0, scales, np.float32(1))
        codes = np.clip(np.floor(rotated / safe) + 8, 0, 15).astype(np.uint8)
        return cls(codes[..., 0::2] << 4 | codes[..., 1::2], scales.astype(np.float32))

    def restored(self) -> TokenArray:
        """Return float32 [n, N, d], the tokens up to what their codes have lost."""
        if self.codes.dtype == np.uint8:
            pairs = np.stack([self.codes >> 4, self.codes & 15], axis=-1).astype(np.float32) - np.float32(7.5)
            rotated = pairs.reshape(*self.codes.shape[:-1], -1) * self.scales
            return _rotated(rotated) * _signs(rotated.shape[-1])
        tokens = self.codes.astype(np.float32)
        return tokens * self.scales if self.scales.shape[1] else tokens

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scales.nbytes)

    def __getitem__(self, rows: Any) -> QuantisedTokens:
        """Return those of some samples, by a slice, a mask or a list of rows."""
        return QuantisedTokens(self.codes[rows], self.scales[rows])

    def __len__(self) -> int:
        return len(self.codes)


@functools.cache
def _signs(width: int) -> TokenArray:
    """Return float32 [width], ones and minus ones, always the same."""
    draws = np.random.Generator(np.random.PCG64(width)).integers(0, 2, width)
    return (2 * draws - 1).astype(np.float32)


def _rotated(tokens: TokenArray) -> TokenArray:
    """Return tokens [..., d] times an orthogonal matrix that is its own inverse, by sums of elements."""
    width = tokens.shape[-1]
    block = width & -width  # the largest power of two that divides it
    values = tokens.reshape(*tokens.shape[:-1], width // block, block)
    half = 1
    while half < block:
        pairs = values.reshape(*values.shape[:-1], block // (2 * half), 2, half)
        one, other = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([one + other, one - other], axis=-2).reshape(values.shape)
        half *= 2
    return values.reshape(tokens.shape) / np.float32(block**0.5)
