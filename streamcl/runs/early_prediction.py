"""Predictions within a budget of work: at the first exit at which a class stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.prediction_interfaces import ExitsEarly
from streamcl.errors import ConfigError
from streamcl.events import Prediction, Sample
from streamcl.learners.exit_plan import ExitPlan, plan_exits
from streamcl.learners.predictions import to_ranking
from streamcl.runs.learner import LoadedRun

MIN_PLAN_SAMPLES = 16
"""Held-out samples from which thresholds can be taken: with fewer the cost is off by more than a tenth."""
PREDICTED_AT_ONCE = 64
"""Samples that are predicted together."""


@dataclass(frozen=True, slots=True)
class EarlyPrediction:
    """The likeliest classes of a sample, the likeliest first. cost: the share of the work of all blocks."""

    ranked: tuple[Prediction, ...]
    cost: float


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
        self._exits = _exits_of(run)
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
        costs = list(accumulate(self._exits.costs))
        ranked = to_ranking(found.logits, self._classes, top)
        return [
            EarlyPrediction(row, costs[place])
            for row, place in zip(ranked, found.exits.tolist(), strict=True)
        ]


def _exits_of(run: LoadedRun) -> ExitsEarly:
    exits = capabilities_of(run.learner).early_exit
    if exits is None:
        raise ConfigError("this learner has no exits; ridge and ridge_lora without a projection have")
    return exits
