"""Predictions within a budget of work, or by a deadline: at exits before the last block."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.prediction_interfaces import ExitsEarly
from streamcl.errors import ConfigError
from streamcl.events import Prediction, Sample
from streamcl.learners.deadline import DeadlineScheduler, GroupTimes
from streamcl.learners.exit_plan import ExitPlan, plan_exits
from streamcl.learners.predictions import to_ranking
from streamcl.protocols import Learner
from streamcl.runs.learner import LoadedRun

MIN_PLAN_SAMPLES = 16
"""Held-out samples from which thresholds can be taken: with fewer the cost is off by more than a tenth."""
PREDICTED_AT_ONCE = 64
"""Samples that are predicted together."""


@dataclass(frozen=True, slots=True)
class EarlyPrediction:
    """The likeliest classes of a sample, the likeliest first.

    cost: the share of the work of all blocks. exit: the number of the exit, from 0.
    """

    ranked: tuple[Prediction, ...]
    cost: float
    exit: int


class BudgetedPredictor:
    """Predicts samples with a share of the work that predicting takes, on average.

    Thresholds are taken from the run's held-out samples, so that on samples like these the budget is kept.

    Args:
        run: of which the learner predicts.
        budget: in (0, 1].

    Raises:
        ConfigError: the learner has no exits, too little is held out, or the first exit takes more.
    """

    def __init__(self, run: LoadedRun, budget: float) -> None:
        self._classes = run.learner.classes
        self._exits = _exits_of(run.learner)
        samples = run.held_out_samples
        if len(samples) < MIN_PLAN_SAMPLES:
            raise ConfigError(
                f"a budget needs {MIN_PLAN_SAMPLES} images that the run holds out; it has {len(samples)}",
                hint="see evaluate.hold_out",
            )
        costs = self._exits.costs
        never = [float("inf")] * (len(costs) - 1)
        chunks = (
            samples[start : start + PREDICTED_AT_ONCE] for start in range(0, len(samples), PREDICTED_AT_ONCE)
        )
        margins = torch.cat([self._exits.predict(chunk, never).margins for chunk in chunks])[:, :-1]
        plan = plan_exits(margins, costs, budget)
        if plan is None:
            raise ConfigError(f"a budget of {budget:.0%} is less than the first exit takes, {costs[0]:.0%}")
        self.plan: ExitPlan = plan

    def predict(self, samples: Sequence[Sample], top: int) -> list[EarlyPrediction]:
        """Return at most `top` classes of each sample, with the work that it took."""
        if not samples:
            return []
        found = self._exits.predict(samples, self.plan.thresholds)
        return _with_costs(found.logits, found.exits, self._exits, self._classes, top)


class DeadlinePredictor:
    """Predicts samples within a time, each as far through the backbone as that allows.

    Args:
        learner: predicts.
        like: of another learner on the same backbone, whose measured times are taken over.
        clock: returns the time in seconds.

    Attributes:
        missed: calls that took longer than their time.
        most_late: seconds by which one of them did, at most.

    Raises:
        ConfigError: the learner has no exits.
    """

    def __init__(
        self,
        learner: Learner,
        like: DeadlinePredictor | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._classes, self._exits = learner.classes, _exits_of(learner)
        self._times: GroupTimes = GroupTimes() if like is None else like._times
        self._scheduler = DeadlineScheduler(self._exits, self._times, clock=clock)
        self.missed, self.most_late = 0, 0.0

    def measure(self, samples: Sequence[Sample]) -> None:
        """Measure how long black images of the sizes of samples, one or more, take."""
        self._scheduler.measure([Sample("", np.zeros_like(each.image)) for each in samples])

    def predict(self, samples: Sequence[Sample], top: int, seconds: float) -> list[EarlyPrediction]:
        """Return at most `top` classes of each sample, with the work that it took."""
        if not samples:
            return []
        found = self._scheduler.predict(samples, seconds)
        if found.seconds > seconds:
            self.missed += 1
            self.most_late = max(self.most_late, found.seconds - seconds)
        return _with_costs(found.logits, found.exits, self._exits, self._classes, top)


def _with_costs(
    logits: Tensor, exits: Tensor, model: ExitsEarly, classes: Sequence[str], top: int
) -> list[EarlyPrediction]:
    costs = list(accumulate(model.costs))
    ranked = to_ranking(logits, classes, top)
    pairs = zip(ranked, exits.tolist(), strict=True)
    return [EarlyPrediction(row, costs[place], place) for row, place in pairs]


def _exits_of(learner: Learner) -> ExitsEarly:
    exits = capabilities_of(learner).early_exit
    if exits is None:
        raise ConfigError("this learner has no exits; ridge and ridge_lora without a projection have")
    return exits
