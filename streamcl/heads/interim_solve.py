"""Weights that take in what was learned after a solve, by its factor, until the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.gram import Cholesky, read_only
from streamcl.heads.solving import NormalEquations, scale_and_offset
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import State

if TYPE_CHECKING:
    from streamcl.heads.deferred_solve import Solve


MAX_GROWN_CLASSES = 128
"""Classes whose new samples are taken in, at most: the cost grows with their number times all classes."""

TAKEN_IN_TOGETHER = 384
"""D over this: new samples that are taken in together, at least, so that single ones cost little each."""


@dataclass(frozen=True, slots=True, eq=False)
class SolveFactor:
    """The parts of a solve by which samples that come after it are taken in.

    factor: float32, of its A [D, D]. mean: float64 [D], of features. Q: float64 [D, C], sums by class.
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
        return cls(equations.factor.single(), equations.mean, Q)

    def grown(self, more: int) -> SolveFactor:
        """Return it with so many more class columns, of no samples."""
        return replace(self, Q=zero_padded(self.Q, more))

    def select(self, columns: Sequence[int]) -> SolveFactor:
        """Return it for these class columns, in this order."""
        return replace(self, Q=self.Q[:, list(columns)])

    def state_dict(self) -> State:
        """Return all of it, in read-only arrays."""
        arrays = {name: read_only(getattr(self, name)) for name in ("mean", "Q")}
        return {"factor": self.factor.state_dict(), **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> SolveFactor:
        """Return what returned `state`."""
        mean, Q = (torch.tensor(state[name], device=device).double() for name in ("mean", "Q"))
        return cls(Cholesky.from_state(state["factor"], device), mean, Q)


@dataclass(frozen=True, slots=True, eq=False)
class NewSamples:
    """The samples that some classes have learned since a solve.

    columns: k classes. counts: float64 [k], new samples of each, none 0. sums: float64 [D, k], of their
    features.
    """

    columns: list[int]
    counts: Tensor
    sums: Tensor

    @classmethod
    def since(cls, used: Solve, statistics: Statistics) -> NewSamples | None:
        """Return those of the classes that have grown the most since a solve, new ones before all others.

        None where nothing is new, or where the solve has no factor.

        Args:
            used: the solve.
            statistics: of all that is known now.
        """
        new = statistics.counts - used.counts
        if used.factor is None or not bool((new > 0).any()):
            return None
        growth = new.double() / used.counts  # infinite for new classes
        columns = growth.nan_to_num(0.0, math.inf).argsort(descending=True, stable=True)[:MAX_GROWN_CLASSES]
        chosen: list[int] = columns[new[columns] > 0].sort().values.tolist()
        sums = statistics.Q[:, chosen] - used.factor.Q[:, chosen]
        return cls(chosen, new[chosen].double(), sums)

    @classmethod
    def taken_in(cls, before: NewSamples | None, used: Solve, statistics: Statistics) -> NewSamples | None:
        """Return what a solve takes in of statistics that have grown: all, or what it had where few are new.

        A class without scores is taken in at once.

        Args:
            before: what it had taken in.
            used: the solve.
            statistics: of all that is known now.
        """
        counts = used.counts if before is None else before.counts_with(used.counts)
        waiting = statistics.total - int(counts.sum())
        unknown = bool(((statistics.counts > 0) & (counts == 0)).any())
        enough = waiting >= statistics.gram.width // TAKEN_IN_TOGETHER
        return cls.since(used, statistics) if enough or unknown else before

    def counts_with(self, solved: Tensor) -> Tensor:
        """Return int64 [C], the samples of each class with those that a solve had, [C]."""
        counts = solved.clone()
        counts[self.columns] += self.counts.long()
        return counts

    def state_dict(self) -> State:
        """Return all of it."""
        arrays = {name: getattr(self, name).cpu().numpy().copy() for name in ("counts", "sums")}
        return {"columns": list(self.columns), **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> NewSamples:
        """Return what returned `state`."""
        counts, sums = (torch.tensor(np.asarray(state[name]), device=device) for name in ("counts", "sums"))
        return cls([int(each) for each in state["columns"]], counts, sums)


class InterimSolve:
    """The weights of a solve, corrected by what classes have learned since.

    They are those of a solve of its own statistics and of the new samples, each of these taken as the mean of
    its class's new ones, with the ridge of the solve. The sums gain Z K Z^T, with Z [D, k] the means of k
    classes less the mean feature m, K = diag(n) - n n^T / N, n their new samples and N all samples. So the
    inverse of A + Z K Z^T follows from the factor of A and a k x k system (Woodbury's identity).

    Args:
        used: the solve.
        factor: what it has left.
        new: what has come since.

    known: bool [C], the classes that have scores. scale: float64 [C], by which their columns are raised.
    """

    def __init__(self, used: Solve, factor: SolveFactor, new: NewSamples) -> None:
        counts, n, mean = new.counts_with(used.counts), new.counts, factor.mean
        total = int(counts.sum())
        Z = new.sums / n - mean[:, None]  # [D, k]
        Y = factor.factor.solve(Z.float()).double()  # A^-1 Z
        S, K = Z.T @ Y, torch.diag(n) - torch.outer(n, n) / total
        F: Tensor = torch.linalg.solve(torch.eye(len(n), dtype=n.dtype, device=n.device) + K @ S, K)
        shift = torch.outer(n, used.counts.double()) / total  # [k, C]: old moments lose Z times this
        old, _ = scale_and_offset(used.counts, used.ridge.value)
        self.scale, at_mean = scale_and_offset(counts, used.ridge.value)
        B = -shift - F @ (Z.T @ used.W / old - S @ shift)
        B[:, new.columns] += F
        self._W, self._ratio = used.W, self.scale / old  # [D, C] and [C]
        self._Y, self._B = Y, B * self.scale  # [D, k] and [k, C]: weights are W ratio + Y B
        self._b = at_mean - self._products((mean + Z @ n / total)[None])[0]
        self.known = counts > 0

    def scores(self, h: Tensor) -> Tensor:
        """Return scores float64 [N, C] of rows h [N, D]; of classes that are not `known` they say nothing."""
        return self._products(h.double()) + self._b

    def _products(self, h: Tensor) -> Tensor:
        return (h @ self._W) * self._ratio + (h @ self._Y) @ self._B
