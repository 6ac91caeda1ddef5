"""Relapse: after a shift, has an erased class come back? Tested without what was erased.

Erased knowledge can return when learning goes on (arXiv 2205.08096 calls its speed the anamnesis). What is
kept for the test is one number per erased class, under its salted hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from streamcl.audit.material import Floats
from streamcl.events import Sample
from streamcl.forgetting.protocol import Sharing, Subtracting
from streamcl.protocols import Learner, State

Erased: TypeAlias = Callable[[str], bool]
Fingerprint: TypeAlias = Callable[[str], str]

DEVIATIONS = 3.0  # standard errors by which separability must have risen
ENOUGH = 8  # held-out samples of a class, and of the others, under which nothing is said


@runtime_checkable
class Featuring(Protocol):
    """A learner that shows the features on which it decides, [N, D]."""

    def features(self, samples: Sequence[Sample]) -> Any:
        """Of these samples, as they are now."""
        ...


@dataclass(frozen=True, slots=True)
class Retest:
    """What one test of all erased classes found. `relapsed` holds names: for erasing again, never for a log.

    named: how many erased classes the model names again. risen: how many it separates better than right
    after their erasure. tested: erased classes with enough held-out samples for that.
    """

    relapsed: tuple[str, ...]
    named: int
    risen: int
    tested: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """What may be logged."""
        counts = {"named": self.named, "risen": self.risen, "tested": self.tested}
        return {"reason": self.reason, "relapsed": len(self.relapsed), **counts}


class Relapse:
    """Tests erased classes again; call `watch` right after an erasure and `check` at every later shift.

    erased: whether a class has a tombstone (`Ledger.is_tombstoned`). fingerprint: its salted hash. holdout:
    held-out samples of the source, of whatever classes.
    """

    def __init__(self, erased: Erased, fingerprint: Fingerprint, holdout: Sequence[Sample]) -> None:
        self._erased, self._fingerprint, self._holdout = erased, fingerprint, holdout
        self._known: dict[str, float] = {}

    def watch(self, learner: Learner) -> None:
        """Note how well each erased class can be told from the others now, where that is not noted yet."""
        if not _can_change(learner):
            return
        for name, samples, others in self._held():
            if self._fingerprint(name) not in self._known:
                self._known[self._fingerprint(name)] = separability(learner, samples, others)

    def check(self, learner: Learner) -> Retest:
        """Whether an erased class is named, or separated better than right after its erasure."""
        named = [name for name in learner.classes if self._erased(name)]
        if not _can_change(learner):
            reason = "sums on fixed features know nothing that was not added to them since the erasure"
            return Retest(tuple(named), len(named), 0, 0, reason)
        risen, tested = [], 0
        for name, samples, others in self._held():
            before = self._known.get(self._fingerprint(name))
            if before is None:
                continue
            tested += 1
            now = separability(learner, samples, others)
            if now - before > DEVIATIONS * _error(before, len(samples), len(others)):
                risen.append(name)
        reason = "held-out samples of the erased classes" if tested else "no held-out samples to test with"
        return Retest(tuple(dict.fromkeys([*named, *risen])), len(named), len(risen), tested, reason)

    def state_dict(self) -> State:
        """One number for each erased class, by its salted hash."""
        return {"known": dict(self._known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the monitor that returned `state`."""
        self._known = {str(name): float(value) for name, value in state["known"].items()}

    def _held(self) -> list[tuple[str, list[Sample], list[Sample]]]:
        """Each erased class with enough held-out samples, those samples, and those of classes that stay."""
        by_name: dict[str, list[Sample]] = {}
        for sample in self._holdout:
            if sample.label is not None:
                by_name.setdefault(sample.label, []).append(sample)
        gone = {name: samples for name, samples in by_name.items() if self._erased(name)}
        others = [sample for name, samples in by_name.items() if name not in gone for sample in samples]
        if len(others) < ENOUGH:
            return []
        return [(name, samples, others) for name, samples in gone.items() if len(samples) >= ENOUGH]


def separability(learner: Learner, samples: Sequence[Sample], others: Sequence[Sample]) -> float:
    """How well the learner's features tell the samples from others: area under the curve, 0.5 is chance.

    The direction between the means of every second sample, tried on the rest. 0.5 for a learner that does
    not show its features.
    """
    if not isinstance(learner, Featuring):
        return 0.5
    one, other = (
        np.asarray(learner.features(each).detach().cpu(), dtype=float) for each in (samples, others)
    )
    direction = one[::2].mean(axis=0) - other[::2].mean(axis=0)
    return _area(one[1::2] @ direction, other[1::2] @ direction)


def _can_change(learner: Learner) -> bool:
    """Whether shared weights may bring back what was erased."""
    return isinstance(learner, Sharing) or not isinstance(learner, Subtracting)


def _area(high: Floats, low: Floats) -> float:
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


def _error(area: float, one: int, other: int) -> float:
    """Standard error of an area under the curve from every second sample (Hanley and McNeil, 1982)."""
    a = min(max(area, 0.5), 0.999)
    m, n = max(1, one // 2), max(1, other // 2)
    first, second = a / (2 - a), 2 * a * a / (1 + a)
    return math.sqrt((a * (1 - a) + (m - 1) * (first - a * a) + (n - 1) * (second - a * a)) / (m * n))
