"""A solve of statistics, and one that a thread computes until a fixed position of the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.interim_solve import SolveFactor
from streamcl.heads.stability import SolveUncertainty
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import State

Weights: TypeAlias = tuple[Tensor, Tensor]
"""W float64 [D, C] and b float64 [C]."""

SolveRule: TypeAlias = Callable[[Statistics, float | None], Weights]
"""Solves statistics with a variance ridge; None where the head has another rule."""


@dataclass(frozen=True, slots=True, eq=False)
class Solve:
    """Weights, and the statistics that they were solved from.

    W: float64 [D, C]. b: float64 [C]. counts: int64 [C], samples of each class in the statistics. ridge: the
    variance ridge of the solve. uncertainty: of the scores; None where it is not kept. factor: for
    classes that grow after it; None where it is not kept.
    """

    W: Tensor
    b: Tensor
    counts: Tensor
    ridge: AdaptiveRidge
    uncertainty: SolveUncertainty | None = None
    factor: SolveFactor | None = None

    @classmethod
    def none_of(cls, statistics: Statistics, ridge: AdaptiveRidge) -> Solve:
        """Return zero weights, which are of no samples, for statistics without any."""
        W = torch.zeros_like(statistics.Q)
        return cls(W, W[0].clone(), torch.zeros_like(statistics.counts), ridge)

    def grown(self, more: int) -> Solve:
        """Return it with so many more class columns, of zero weights."""
        W, b, counts = (zero_padded(values, more) for values in (self.W, self.b, self.counts))
        uncertainty = None if self.uncertainty is None else self.uncertainty.grown(more)
        factor = None if self.factor is None else self.factor.grown(more)
        return replace(self, W=W, b=b, counts=counts, uncertainty=uncertainty, factor=factor)

    def select(self, columns: Sequence[int]) -> Solve:
        """Return it for these class columns, in this order."""
        keep = list(columns)
        W, b, counts = self.W[:, keep], self.b[keep], self.counts[keep]
        uncertainty = None if self.uncertainty is None else self.uncertainty.select(keep)
        factor = None if self.factor is None else self.factor.select(keep)
        return replace(self, W=W, b=b, counts=counts, uncertainty=uncertainty, factor=factor)

    def state_dict(self) -> State:
        """Return the weights, the counts that they were solved for, and the ridge."""
        arrays = {"W": self.W, "b": self.b, "solved": self.counts}
        plain = {name: array.cpu().numpy().copy() for name, array in arrays.items()}
        kept = {"uncertainty": self.uncertainty, "factor": self.factor}
        parts = {name: part.state_dict() for name, part in kept.items() if part is not None}
        return {**plain, **self.ridge.state_dict(), **parts}

    def with_state(self, state: Mapping[str, Any], *, keeps_uncertainty: bool, keeps_factor: bool) -> Solve:
        """Return the solve that returned `state`, on the same device, with what is kept of its equations."""
        device = self.W.device
        W, b, counts = (torch.tensor(np.asarray(state[name]), device=device) for name in ("W", "b", "solved"))
        kept = state.get("uncertainty") if keeps_uncertainty else None
        uncertainty = None if kept is None else SolveUncertainty.from_state(kept, device)
        saved = state.get("factor") if keeps_factor else None
        factor = None if saved is None else SolveFactor.from_state(saved, device)
        return Solve(W, b, counts, self.ridge.with_state(state), uncertainty, factor)


class DeferredSolve:
    """A solve whose weights come into use at a position fixed beforehand, computed by a thread until then.

    So what is predicted depends on the stream alone, and not on the speed of the machine.

    Args:
        position: the samples in the head's sums from which on its weights are in use.
        computed: the solve.
    """

    def __init__(self, position: int, computed: Future[Solve]) -> None:
        self.position = position
        self._computed = computed
        self._again: Callable[[], Solve] | None = None

    @classmethod
    def start(cls, position: int, solve: Callable[[], Solve]) -> DeferredSolve:
        """Compute a solve in a thread, from sums that nobody writes to."""
        started = cls(position, Future())
        started._again = solve
        started._computed = _in_thread(started._compute)
        return started

    @classmethod
    def of(cls, position: int, solve: Solve) -> DeferredSolve:
        """Return a solve that is computed already."""
        computed: Future[Solve] = Future()
        computed.set_result(solve)
        return cls(position, computed)

    def wait(self) -> None:
        """Wait for the end of the thread, which holds no sums any more then."""
        wait([self._computed])

    def result(self) -> Solve:
        """Wait for the solve and return it.

        Where the thread has failed, for want of memory for example, it is computed here, from the same sums.
        An error of that is raised, and the next call tries again.
        """
        if self._computed.exception() is not None:
            solve, self._computed = self._compute(), Future()
            self._computed.set_result(solve)
        return self._computed.result()

    def _compute(self) -> Solve:
        assert self._again is not None
        solve = self._again()
        self._again = None  # which holds the sums
        return solve


def _in_thread(compute: Callable[[], Solve]) -> Future[Solve]:
    """Call it in a thread of its own, in which a product has as many threads as in this one."""
    pool = ThreadPoolExecutor(1, "solve", torch.set_num_threads, (torch.get_num_threads(),))
    try:
        return pool.submit(compute)
    finally:
        pool.shutdown(wait=False)
