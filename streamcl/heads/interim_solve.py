"""Weights that take in what was learned after a solve, by its factor, while the next one is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamcl.heads.gram import Cholesky
from streamcl.heads.solving import NormalEquations, scale_and_offset
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import State

if TYPE_CHECKING:
    from streamcl.heads.deferred_solve import Solve


MAX_GROWN_CLASSES = 128
"""Classes whose new samples are taken in, at most: the cost grows with their number times all classes."""


@dataclass(frozen=True, slots=True, eq=False)
class SolveFactor:
    """The parts of a solve by which samples that come after it are taken in.

    factor: float32, of its A [D, D]. mean: float32 [D], of features. Q: float32 [D, C], sums by class.
    """

    factor: Cholesky
    mean: Tensor
    Q: Tensor

    @classmethod
    def of(cls, equations: NormalEquations, Q: Tensor) -> SolveFactor:
        """Return them.

        Args:
            equations: the normal equations that were solved.
            Q: [D, C], the sums by class that they are of.
        """
        return cls(equations.factor.single(), equations.mean.float(), Q.float())

    def grown(self, more: int) -> SolveFactor:
        """Return it with so many more class columns, of no samples."""
        return replace(self, Q=zero_padded(self.Q, more))

    def select(self, columns: Sequence[int]) -> SolveFactor:
        """Return it for these class columns, in this order."""
        return replace(self, Q=self.Q[:, list(columns)])

    def state_dict(self) -> State:
        """Return all of it."""
        arrays = {name: getattr(self, name).cpu().numpy().copy() for name in ("mean", "Q")}
        return {"factor": self.factor.state_dict(), **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> SolveFactor:
        """Return what returned `state`."""
        mean, Q = (torch.tensor(state[name], device=device) for name in ("mean", "Q"))
        return cls(Cholesky.from_state(state["factor"], device), mean, Q)


class InterimSolve:
    """The weights of a solve, corrected by what classes have learned since.

    They are those of a solve of its own statistics and of the new samples, each of these taken as the mean of
    its class's new ones, with the ridge of the solve. The sums gain Z K Z^T, with Z [D, k] the means of k
    classes less the mean feature m, K = diag(n) - n n^T / N, n their new samples and N all samples. So the
    inverse of A + Z K Z^T follows from the factor of A and a k x k system (Woodbury's identity).

    Args:
        used: the solve.
        factor: what it has left.
        statistics: of all that is known now.
        columns: the k classes.

    known: bool [C], the classes that have scores. scale: float64 [C], by which their columns are raised.
    """

    def __init__(
        self, used: Solve, factor: SolveFactor, statistics: Statistics, columns: Sequence[int]
    ) -> None:
        new = torch.zeros_like(used.counts)
        new[columns] = (statistics.counts - used.counts)[columns]
        counts, n, mean = used.counts + new, new[columns].double(), factor.mean.double()
        total = int(counts.sum())
        Z = (statistics.Q[:, columns] - factor.Q[:, columns]) / n - mean[:, None]  # [D, k]
        Y = factor.factor.solve(Z.float()).double()  # A^-1 Z
        S, K = Z.T @ Y, torch.diag(n) - torch.outer(n, n) / total
        F: Tensor = torch.linalg.solve(torch.eye(len(n), dtype=n.dtype, device=n.device) + K @ S, K)
        shift = torch.outer(n, used.counts.double()) / total  # [k, C]: old moments lose Z times this
        old, _ = scale_and_offset(used.counts, used.ridge.value)
        self.scale, at_mean = scale_and_offset(counts, used.ridge.value)
        B = -shift - F @ (Z.T @ used.W / old - S @ shift)
        B[:, columns] += F
        self._W, self._ratio = used.W, self.scale / old  # [D, C] and [C]
        self._Y, self._B = Y, B * self.scale  # [D, k] and [k, C]: weights are W ratio + Y B
        self._b = at_mean - self._products((mean + Z @ n / total)[None])[0]
        self.known = counts > 0

    @classmethod
    def of(cls, used: Solve, factor: SolveFactor, statistics: Statistics) -> InterimSolve | None:
        """Return the correction by those classes that have grown the most, new ones before all others.

        None where nothing is new.

        Args:
            used: the solve.
            factor: what it has left.
            statistics: of all that is known now.
        """
        new = statistics.counts - used.counts
        if not bool((new > 0).any()):
            return None
        growth = new.double() / used.counts  # infinite for new classes
        columns = growth.nan_to_num(0.0, math.inf).argsort(descending=True, stable=True)[:MAX_GROWN_CLASSES]
        return cls(used, factor, statistics, columns[new[columns] > 0].sort().values.tolist())

    def scores(self, h: Tensor) -> Tensor:
        """Return scores float64 [N, C] of rows h [N, D]; of classes that are not `known` they say nothing."""
        return self._products(h.double()) + self._b

    def _products(self, h: Tensor) -> Tensor:
        return (h @ self._W) * self._ratio + (h @ self._Y) @ self._B
