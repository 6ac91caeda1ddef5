"""Seconds of one prediction: measured for some candidates, and by a cost model for the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from streamcl.events import Batch, Sample
from streamcl.protocols import Learner

logger = logging.getLogger(__name__)

MAX_ERROR = 0.15
"""Relative error of the model on a candidate that it was not fitted to, above which all are measured."""
LEARNED = 8
"""Samples that a learner has learned, twice, when it is measured: its time does not depend on how many."""
ROUNDS = 3
"""How often each image is predicted; the time is the shortest of all."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of one prediction: tokens of an image, and how often a block is run on those of one image."""

    tokens: int
    blocks: int

    @property
    def terms(self) -> list[float]:
        """The terms of the cost model: a start, the stem, and each block's linear layers and attention."""
        tokens = float(self.tokens)
        return [1.0, tokens, *(self.blocks * each for each in (1.0, tokens, tokens**2))]


class LatencyModel:
    """t = t0 + s N + blocks (c + a N + b N^2), none of them negative, by least squares of relative errors."""

    def __init__(self, measured: Sequence[tuple[Workload, float]]) -> None:
        rows = np.array([work.terms for work, _ in measured])
        seconds = np.array([each for _, each in measured])
        scale = rows.max(axis=0)  # terms differ by five orders of magnitude
        found, _ = nnls(rows / scale / seconds[:, None], np.ones(len(seconds)))
        self._factors = found / scale

    def seconds(self, work: Workload) -> float:
        """Return the time of one prediction."""
        return float(self._factors @ work.terms)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds of one prediction by image size and depth.

    error: the model's largest relative error on candidates that it was not fitted to; None where there were
    none. measured: those that were measured; the model gives the others.
    """

    seconds: Mapping[tuple[int, int], float]
    measured: frozenset[tuple[int, int]]
    error: float | None


def latencies(works: Mapping[tuple[int, int], Workload], measure: Callable[[int, int], float]) -> Latencies:
    """Return the latency of each image size and depth, of which about half are measured.

    The model is fitted to the smallest and the largest depth of each size and tried on one in between. Where
    it is off by more than MAX_ERROR there, all are measured.

    Args:
        works: the work of each (image size, depth).
        measure: returns the seconds of an image size and a depth.
    """
    sizes = sorted({size for size, _ in works})
    by_size = {size: sorted(depth for each, depth in works if each == size) for size in sizes}
    ends = [(size, depth) for size in sizes for depth in sorted({by_size[size][0], by_size[size][-1]})]
    middle = [(size, by_size[size][len(by_size[size]) // 2]) for size in sizes if len(by_size[size]) > 2]
    found = {place: measure(*place) for place in (*ends, *middle)}
    model = LatencyModel([(works[place], found[place]) for place in ends])
    errors = [abs(model.seconds(works[place]) / found[place] - 1) for place in middle]
    error = max(errors, default=None)
    if error is not None and error > MAX_ERROR:
        logger.info("the cost model is off by %.0f %%, so every depth is measured", 100 * error)
        found |= {place: measure(*place) for place in works if place not in found}
    modelled = {place: model.seconds(work) for place, work in works.items() if place not in found}
    return Latencies(modelled | found, frozenset(found), error)


def idle_clock(device: str) -> Callable[[], float]:
    """Return a clock of what this thread takes, on a machine on which nothing else runs.

    On a CPU it is the thread's processor time: the thread computes itself, or waits actively for others that
    compute for it.

    Args:
        device: "cpu" or "cuda".
    """
    return time.thread_time if device == "cpu" else time.perf_counter


def prediction_seconds(
    learner: Learner, samples: Sequence[Sample], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds in which a learner predicts one image, alone, from its pixels on.

    The learner learns the samples first.

    Args:
        learner: that answers requests, with chunks that fit them.
        samples: labelled ones.
        clock: in seconds.
    """
    for start in (0, LEARNED):  # the first ones train adapters where there are any
        learner.learn(Batch(start, tuple(samples[start : start + LEARNED])))
    shown = samples[:8]
    for sample in shown[:2]:  # solves what is due, and casts the weights
        learner.predict([sample])
    return min(_seconds(learner, sample, clock) for _ in range(ROUNDS) for sample in shown)


def _seconds(learner: Learner, sample: Sample, clock: Callable[[], float]) -> float:
    began = clock()
    learner.predict([sample])
    return clock() - began
