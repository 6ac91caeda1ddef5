"""Significance of a measured value against the references, at a stated false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from scipy import stats

from streamcl.audit.data import Floats

Side: TypeAlias = Literal["both", "high", "low"]
Outcome: TypeAlias = Literal["within", "too high", "too low"]

ROUNDING = 1e-9
"""Relative difference below which two values count as equal: sums of float64 differ by less."""


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """One measure of the audited model beside the references.

    Attributes:
        measure: its name.
        value: of the audited model, a mean where it is several.
        reference_mean, reference_std: over the references.
        p_value: chance that one more reference would be at least as far from the others.
        unforgotten: value of models that never forgot, which shows whether the measure can detect anything.
        paper: where the measure is from.
        outcome: "within" unless p_value is below the false-alarm rate divided by the number of measures
            (Bonferroni).
    """

    measure: str
    value: float
    reference_mean: float
    reference_std: float
    p_value: float
    unforgotten: float | None
    paper: str
    outcome: Outcome = "within"

    @property
    def passed(self) -> bool:
        """Whether a retrained model could have this value."""
        return self.outcome == "within"


def compare_with_references(
    measure: str,
    values: Floats,
    references: Floats,
    unforgotten: Floats | None = None,
    *,
    side: Side = "both",
    step: float = 0.0,
    centre: float | None = None,
    paper: str = "",
) -> MeasureResult:
    """Return how the mean of M values compares with K references, as if it were one more of them.

    Student's t for a new observation, with standard error std * sqrt(1 + 1/K). Averaging over M > 1 makes a
    false alarm rarer than stated, never more frequent.

    Args:
        measure: its name.
        values: [M], of the audited models.
        references: [K], of models retrained without the forgotten samples.
        unforgotten: [U], of models that never forgot, to report.
        side: on which side of the references a value is bad.
        step: smallest difference that the measure can show (1/N for a share of N samples); the standard
            deviation is taken to be no smaller.
        centre: expected value; the references' mean where it is not known better.
        paper: where the measure is from.
    """
    value, mean = float(values.mean()), float(references.mean()) if centre is None else centre
    spread = float(references.std(ddof=1)) if len(references) > 1 else 0.0
    shown = None if unforgotten is None else float(unforgotten.mean())
    rounding = ROUNDING * (1 + abs(mean))
    p = _p_value(value - mean, max(spread, step), len(references), side, rounding)
    return MeasureResult(measure, value, mean, spread, p, shown, paper)


def compare_with_permutations(measure: str, value: float, null: Floats, *, paper: str = "") -> MeasureResult:
    """Return how a value of two groups of models compares with those of random groups; large values are bad.

    A permutation test, one-sided.

    Args:
        measure: its name.
        value: that of the two groups as they are.
        null: [B], the values of B random assignments of the models to the groups.
        paper: where the measure is from.
    """
    p = (1 + int((null >= value - ROUNDING * (1 + abs(value))).sum())) / (1 + len(null))
    return MeasureResult(measure, value, float(null.mean()), float(null.std(ddof=1)), p, None, paper)


def with_outcomes(results: Sequence[MeasureResult], false_alarm_rate: float) -> tuple[MeasureResult, ...]:
    """Return the results with outcomes; a retrained model fails any of them at most at the given rate."""
    level = false_alarm_rate / max(1, len(results))
    return tuple(replace(each, outcome=_outcome(each, level)) for each in results)


def _outcome(result: MeasureResult, level: float) -> Outcome:
    if result.p_value >= level:
        return "within"
    return "too high" if result.value > result.reference_mean else "too low"


def _p_value(difference: float, spread: float, count: int, side: Side, rounding: float) -> float:
    if side == "high":
        difference = max(difference, 0.0)
    if side == "low":
        difference = min(difference, 0.0)
    if abs(difference) <= rounding:
        return 1.0
    if spread <= rounding or count < 2:
        return 0.0
    tail = float(stats.t.sf(abs(difference) / (spread * math.sqrt(1 + 1 / count)), count - 1))
    return tail * (2 if side == "both" else 1)
