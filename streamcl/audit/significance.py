"""How a value is judged: beside what references show, with a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from streamcl.audit.data import Floats

Side: TypeAlias = Literal["both", "high", "low"]
Outcome: TypeAlias = Literal["within", "too high", "too low"]

_SAME = 1e-9  # relative; differences below it are rounding


@dataclass(frozen=True, slots=True)
class Finding:
    """One measure: its value, the references' mean and spread, and how likely a reference is so far out.

    unforgotten: what models that never forgot come to, so that one sees whether the measure can tell.
    p: the chance that one more reference would be at least as far from the others. outcome: "within" unless
    p is below the audit's false-alarm rate divided by the number of its measures (Bonferroni).
    """

    measure: str
    value: float
    mean: float
    spread: float
    p: float
    unforgotten: float | None
    paper: str
    outcome: Outcome = "within"

    @property
    def good(self) -> bool:
        """Whether the value is one that a retrained model could have."""
        return self.outcome == "within"


def beside(
    measure: str,
    values: Floats,
    references: Floats,
    unforgotten: Floats | None = None,
    *,
    side: Side = "both",
    step: float = 0.0,
    centre: float | None = None,
    paper: str = "",
) -> Finding:
    """The mean of `values` [M] as if it were that of one more reference beside `references` [K].

    Student's t for a new observation: spread * sqrt(1 + 1/K). Averaging over M > 1 makes a false alarm
    rarer than stated, never more frequent. step: the smallest difference that the measure can show (1/N for
    a share of N samples), under which no spread is taken. centre: where the value should be; the references'
    mean where it is not known better.
    """
    value, mean = float(values.mean()), float(references.mean()) if centre is None else centre
    spread = float(references.std(ddof=1)) if len(references) > 1 else 0.0
    shown = None if unforgotten is None else float(unforgotten.mean())
    p = _p_of(value - mean, max(spread, step), len(references), side, tiny=_SAME * (1 + abs(mean)))
    return Finding(measure, value, mean, spread, p, shown, paper)


def relabelled(measure: str, value: float, null: Floats, *, paper: str = "") -> Finding:
    """A value of two groups of models, beside its values [B] when models are dealt to them at random."""
    p = (1 + int((null >= value - _SAME * (1 + abs(value))).sum())) / (1 + len(null))
    return Finding(measure, value, float(null.mean()), float(null.std(ddof=1)), p, None, paper)


def judged(findings: Sequence[Finding], rate: float) -> tuple[Finding, ...]:
    """The findings with their outcomes; a model like the references fails any of them at most at `rate`."""
    level = rate / max(1, len(findings))
    return tuple(replace(each, outcome=_outcome(each, level)) for each in findings)


def _outcome(finding: Finding, level: float) -> Outcome:
    if finding.p >= level:
        return "within"
    return "too high" if finding.value > finding.mean else "too low"


def _p_of(difference: float, spread: float, count: int, side: Side, *, tiny: float) -> float:
    if side == "high":
        difference = max(difference, 0.0)
    if side == "low":
        difference = min(difference, 0.0)
    if abs(difference) <= tiny:
        return 1.0
    if spread <= tiny or count < 2:
        return 0.0
    tail = student_tail(abs(difference) / (spread * math.sqrt(1 + 1 / count)), count - 1)
    return tail * (2 if side == "both" else 1)


def student_tail(t: float, freedom: int) -> float:
    """P(T > t), t >= 0, of Student's t, by the substitution T = sqrt(n) tan(a), integrated in 2000 steps."""
    start = math.atan(t / math.sqrt(freedom))
    angles = np.linspace(start, math.pi / 2, 2001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return float(scale * np.trapezoid(np.cos(angles) ** (freedom - 1), angles))
