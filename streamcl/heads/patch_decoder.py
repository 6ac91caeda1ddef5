"""A linear decoder from contexts of hidden patches to their pixels, from sums that can be subtracted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.gram import Gram
from streamcl.heads.statistics import RESIDUE, largest, ratio, smallest_eigenvalue
from streamcl.protocols import Rollback, State, savepoint_of


@dataclass(frozen=True, slots=True, eq=False)
class HiddenPatches:
    """The M hidden ones among the N patches of each of B images.

    Attributes:
        contexts: float32 [B, M, D], what the patches that are seen say of each.
        patches: float32 [B, N, V], all patches, 0 to 1.
        places: int64 [B, M], the numbers of the hidden ones, ascending.
    """

    contexts: Tensor
    patches: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    @property
    def pixels(self) -> Tensor:
        """The hidden patches themselves, [B, M, V]."""
        return rows_at(self.patches, self.places)

    def filled(self, pixels: Tensor) -> Tensor:
        """Return all patches [B, N, V], the hidden ones replaced.

        Args:
            pixels: [B, M, V].
        """
        index = self.places[..., None].expand(pixels.shape)
        return self.patches.scatter(1, index, pixels.to(self.patches))

    @classmethod
    def concatenated(cls, parts: Iterable[HiddenPatches]) -> HiddenPatches:
        """Return the patches of all images of some parts, one or more."""
        columns = ((each.contexts, each.patches, each.places) for each in parts)
        return cls(*map(torch.cat, zip(*columns, strict=True)))

    def at(self, index: slice | Tensor) -> HiddenPatches:
        """Return those of some images.

        Args:
            index: a slice, or int64 [n].
        """
        return HiddenPatches(self.contexts[index], self.patches[index], self.places[index])


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Return [B, K, d], some rows of each of B matrices.

    Args:
        values: [B, N, d].
        index: int64 [B, K].
    """
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


@dataclass(frozen=True, slots=True, eq=False)
class PatchSums:
    """The statistics of patches, as an immutable value.

    Attributes:
        gram: G = sum of z^T z over the contexts z of patches, float64 [D, D].
        moments: M = sum of z^T p over the patches' pixels p, float64 [D, V].
        samples: the number of images.
        patches: the number of patches.
    """

    gram: Gram
    moments: Tensor
    samples: int
    patches: int

    @classmethod
    def empty(cls, width: int, values: int, device: torch.device | str = "cpu") -> PatchSums:
        """Return the sums of no samples: contexts of `width` numbers, patches of `values`."""
        moments = torch.zeros(width, values, dtype=torch.float64, device=device)
        return cls(Gram(width, device), moments, 0, 0)

    @classmethod
    def of(cls, hidden: HiddenPatches) -> PatchSums:
        """Return the sums of the hidden patches of images."""
        z, p = hidden.contexts.flatten(0, 1).double(), hidden.pixels.flatten(0, 1).double()
        gram = Gram(z.shape[1], z.device)
        gram.add(z)
        return cls(gram, z.T @ p, len(hidden), len(z))

    def __add__(self, other: PatchSums) -> PatchSums:
        """Return the sums of both."""
        return self._plus(other, 1)

    def __sub__(self, other: PatchSums) -> PatchSums:
        """Return the sums without those of `other`; whether they were part of them is not checked."""
        return self._plus(other, -1)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return bool(self.moments.isfinite().all()) and bool(self.gram.diagonal().isfinite().all())

    def relative_error(self, other: PatchSums) -> float:
        """Return the largest difference of an entry, relative to the largest entry of its tensor here."""
        difference = self - other
        return max(
            ratio(difference.gram.largest, self.gram.largest),
            ratio(largest(difference.moments), largest(self.moments)),
            ratio(abs(difference.patches), self.patches),
        )

    def state_dict(self) -> State:
        """Return the sums as arrays."""
        moments = self.moments.cpu().numpy().copy()
        counts = {"samples": self.samples, "patches": self.patches}
        return {"gram": self.gram.state_dict(), "moments": moments, **counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> PatchSums:
        """Return the sums that gave `state`."""
        moments = torch.tensor(np.asarray(state["moments"])).to(device)
        gram = Gram(len(moments), device)
        gram.load_state_dict(state["gram"])
        return cls(gram, moments, int(state["samples"]), int(state["patches"]))

    def _plus(self, other: PatchSums, sign: int) -> PatchSums:
        gram = self.gram.copy()
        gram.add_sum(other.gram, sign=sign)
        moments = self.moments + sign * other.moments
        return PatchSums(
            gram, moments, self.samples + sign * other.samples, self.patches + sign * other.patches
        )


class PatchDecoder:
    """Maps contexts of hidden patches to their pixels by ridge regression, W = (G + lambda I)^-1 M.

    The sums are additive, so the order of the samples does not matter, and samples are taken out again
    exactly, up to rounding in float64. The ridge follows from the sums alone: lambda is `trace_ridge` times
    the mean of G's diagonal.

    Args:
        width: D of the contexts, which hold a constant for the intercept.
        values: V, the numbers of a patch.
        trace_ridge: a share.
        device: of the sums.
    """

    def __init__(
        self, width: int, values: int, *, trace_ridge: float = 1e-3, device: torch.device | str = "cpu"
    ) -> None:
        self.trace_ridge = trace_ridge
        self._sums = PatchSums.empty(width, values, device)
        self._smallest: float | None = None  # known after an erasure
        self._solved: tuple[PatchSums, Tensor] | None = None  # weights of these sums; spares a second solve

    @property
    def sums(self) -> PatchSums:
        """The decoder's own sums. Not to be written to."""
        return self._sums

    def merge(self, other: PatchSums) -> None:
        """Learn the samples of other sums."""
        self._sums, self._smallest = self._sums + other, None

    def remove(self, other: PatchSums) -> None:
        """Subtract sums.

        Raises:
            ForgettingError: they cannot be part of these, as a count or an eigenvalue would turn negative, or
                something would remain where no samples are. Nothing has changed.
        """
        left, smallest = self._sums - other, 0.0
        if left.samples < 0 or left.patches < 0:
            raise ForgettingError("more images are to be forgotten than the decoder has learned")
        if not left.samples:
            left = self._without_residue(left)
        elif (smallest := smallest_eigenvalue(left.gram, self._ridge(left))) < 0.5:
            raise ForgettingError(
                "an eigenvalue of the decoder's sums would be negative: not all of these images are in them",
                hint="they were forgotten before, never learned, or their tokens were derived differently",
            )
        self._sums, self._smallest = left, smallest

    def removal_figures(self) -> Mapping[str, Any]:
        """Return the images left, and the smallest eigenvalue in units of the ridge, after `remove`."""
        return {
            "decoder_samples_left": self._sums.samples,
            "decoder_smallest_eigenvalue_over_lambda": self._smallest,
        }

    def weights(self, sums: PatchSums | None = None) -> Tensor:
        """Return W, float64 [D, V], of its own sums or of others; zero where there are no samples."""
        if sums is not None:
            return self._solve(sums)
        if self._solved is None or self._solved[0] is not self._sums:
            self._solved = self._sums, self._solve(self._sums)
        return self._solved[1]

    def decode(self, contexts: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return pixels float32 [..., V] between 0 and 1.

        Args:
            contexts: [..., D].
            weights: float64 [D, V]; None for those of its own sums.
        """
        W = self.weights() if weights is None else weights
        return (contexts.double() @ W).clamp(0.0, 1.0).float()

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present state; copies nothing."""
        return savepoint_of(self, "_sums", "_smallest", "_solved")

    def state_dict(self) -> State:
        """Return the sums, which everything else follows from."""
        return self._sums.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the decoder that returned `state`, made with the same arguments."""
        sums, shape = PatchSums.from_state(state, self._sums.moments.device), self._sums.moments.shape
        if sums.moments.shape != shape:
            raise ValueError(f"moments have shape {tuple(sums.moments.shape)}, expected {tuple(shape)}")
        self._sums, self._smallest, self._solved = sums, None, None

    def _ridge(self, sums: PatchSums) -> Tensor:
        """[D]: the same number D times; never zero, so that no samples give weights of zero."""
        ridge = self.trace_ridge * sums.gram.trace / sums.gram.width
        return sums.moments.new_full((sums.gram.width,), ridge or 1.0)

    def _solve(self, sums: PatchSums) -> Tensor:
        return sums.gram.regularised(self._ridge(sums)).solve(sums.moments)

    def _without_residue(self, left: PatchSums) -> PatchSums:
        width, values = left.moments.shape
        empty = PatchSums.empty(width, values, left.moments.device)
        found = ratio(left.gram.largest, self._sums.gram.largest)
        if left.patches or found > RESIDUE:
            raise ForgettingError("patches would remain without images: these are not the images learned")
        return empty
