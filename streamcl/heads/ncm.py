"""The nearest class mean on fixed features: one sum a class, free of order, forgotten by subtraction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.heads.closed_form_head import ClosedFormHead
from streamcl.heads.linear import padded_rows
from streamcl.heads.statistics import RESIDUE, PartsOfHead, check_counts, check_fit, largest, ratio
from streamcl.protocols import Rollback, State, savepoint_of

Metric: TypeAlias = Literal["cosine", "euclid"]


@dataclass(frozen=True, slots=True, eq=False)
class ClassSums:
    """The statistics of a nearest-mean head: S, sum of features a class, float64 [C, d]; counts int64 [C]."""

    S: Tensor
    counts: Tensor

    def __add__(self, other: ClassSums) -> ClassSums:
        """Return the sums of both, of the same classes."""
        return ClassSums(self.S + other.S, self.counts + other.counts)

    def __sub__(self, other: ClassSums) -> ClassSums:
        """Return the sums without those of `other`, of the same classes."""
        return ClassSums(self.S - other.S, self.counts - other.counts)

    def relative_error(self, other: ClassSums) -> float:
        """Return the largest difference of an entry, relative to the largest entry of its tensor here."""
        difference = self - other
        return max(
            ratio(largest(difference.S), largest(self.S)),
            ratio(largest(difference.counts), largest(self.counts)),
        )

    @property
    def total(self) -> int:
        """The number of samples."""
        return int(self.counts.sum())


class NCMHead(ClosedFormHead[ClassSums]):
    """Scores [N, C]: how near each feature is to the mean of each class (iCaRL, arXiv 1611.07725, eq. 2).

    width: d of the features. metric: "cosine" normalises every feature to length one and scores by the cosine
    with the class mean; "euclid" scores by -|x - mu_c|^2 / d, plus the same for the mean of everything, so
    that a score above zero says nearer to the class than to the average sample. Sums are additive float64:
    no order matters and samples are taken out again exactly, up to rounding.
    """

    def __init__(self, width: int, *, metric: Metric = "cosine", device: torch.device | str = "cpu") -> None:
        self.width = width
        self._metric = metric
        self._S = torch.zeros(0, width, dtype=torch.float64, device=device)
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def statistics(self) -> ClassSums:
        """The head's own sums. Not to be written to."""
        return ClassSums(self._S, self._counts)

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns; old ones keep their values, one without samples scores -inf."""
        more = max(0, classes - self.classes)
        self._S, self._counts = padded_rows(self._S, more), padded_rows(self._counts, more)

    def statistic_rows(self, features: Tensor) -> Tensor:
        """Return the rows that are summed, float64 [N, d], of features [N, d]."""
        self._confirm_width(features)
        x = features.detach().to(self._S.device).double()
        return F.normalize(x, dim=1) if self._metric == "cosine" else x

    def statistics_of(self, features: Tensor, targets: Tensor) -> ClassSums:
        """Return the statistics of samples, to be stored, merged or removed later.

        Args:
            features: [N, d].
            targets: int64 [N], columns that exist.

        Raises:
            ValueError: another shape, a column that does not exist, or a value that is not finite.
        """
        x, targets = self.statistic_rows(features), targets.to(self._S.device)
        check_fit(x, targets, self.classes)
        sums = x.new_zeros(self.classes, self.width).index_add_(0, targets, x)
        return ClassSums(sums, targets.bincount(minlength=self.classes))

    @property
    def statistic_width(self) -> int:
        """d: how many columns the rows have that are summed."""
        return self.width

    def statistics_from_parts(self, parts: PartsOfHead) -> ClassSums:
        """Return the sum of parts; their rows are not needed here."""
        S, counts = torch.zeros_like(self._S), torch.zeros_like(self._counts)
        for _, sums in parts:
            for column, (count, total) in sums.items():
                S[column] += torch.as_tensor(total, device=S.device)
                counts[column] += count
        return ClassSums(S, counts)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Learn samples; raise as `statistics_of` does, having changed nothing.

        Args:
            features: [N, d].
            targets: int64 [N], columns that exist.
        """
        self.merge(self.statistics_of(features, targets))

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present state; copies nothing."""
        return savepoint_of(self, "_S", "_counts")

    def merge(self, other: ClassSums) -> None:
        """Learn what other sums of the same features hold; column i there is column i here."""
        other = self._aligned(other)
        learned = self.statistics + other
        self._S, self._counts = learned.S, learned.counts

    def downdate(self, features: Tensor, targets: Tensor) -> None:
        """Forget learned samples, up to rounding in float64; raise as `remove` does.

        Args:
            features: [N, d].
            targets: int64 [N].
        """
        self.remove(self.statistics_of(features, targets))

    def remove(self, other: ClassSums) -> None:
        """Forget by sums that were kept (see `statistics_of`).

        Raises ForgettingError, and changes nothing, where a count would turn negative or features remain of a
        class with no samples left. Other wrong deletions cannot be seen from sums of first order: keep ids.
        """
        other = self._aligned(other)
        S, counts = self._S - other.S, self._counts - other.counts
        check_counts(counts)
        gone = counts == 0
        was = float(self._S[gone].abs().max()) if bool(gone.any()) else 0.0
        if was and float(S[gone].abs().max()) > RESIDUE * was:
            raise ForgettingError(
                "features of a class without samples would remain: these are not its samples"
            )
        S[gone] = 0.0
        self._S, self._counts = S, counts

    def removal_figures(self) -> Mapping[str, Any]:
        """Return the number of samples left."""
        return {"samples_left": self.statistics.total}

    def _select(self, columns: Sequence[int]) -> None:
        self._S, self._counts = self._S[columns], self._counts[columns]

    def scores_refit(self, features: Tensor) -> Tensor:
        """Return `scores` [N, C] of features [N, d]: means are never behind."""
        return self.scores(features)

    def scores(self, features: Tensor) -> Tensor:
        """Return scores float64 [N, C] of features [N, d]; -inf for a class without samples."""
        x = self.statistic_rows(features)
        means = self._S / self._counts.clamp(min=1)[:, None]  # [C, d]
        if self._metric == "cosine":
            scores = x @ F.normalize(means, dim=1).T
        else:
            centre = self._S.sum(dim=0) / max(1, int(self._counts.sum()))
            x, apart = x - centre, means - centre
            scores = (2 * x @ apart.T - apart.square().sum(dim=1)) / self.width
        return scores.masked_fill(self._counts == 0, -math.inf)

    def state_dict(self) -> State:
        """Return the sums and the counts."""
        return {"S": self._S.cpu().numpy().copy(), "counts": self._counts.cpu().numpy().copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`, made with the same arguments."""
        if state["S"].shape[1:] != (self.width,):
            raise ValueError(f"S has shape {state['S'].shape}, expected [C, {self.width}]")
        device = self._S.device
        self._S, self._counts = (torch.tensor(np.asarray(state[n]), device=device) for n in ("S", "counts"))

    def _aligned(self, other: ClassSums) -> ClassSums:
        more = self.classes - len(other.counts)
        if other.S.shape[1] != self.width or more < 0:
            raise ValueError(
                f"sums of width {other.S.shape[1]} with {len(other.counts)} classes do not fit a head of "
                f"width {self.width} with {self.classes}"
            )
        return ClassSums(padded_rows(other.S, more), padded_rows(other.counts, more))
