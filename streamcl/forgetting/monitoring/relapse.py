"""Relapse: after a shift, has something erased come back? Tested without what was erased.

Erased knowledge can return when learning goes on (arXiv 2205.08096 calls its speed the anamnesis). A test
reads the names that the learner gives, and held-out samples of the source, which were never learned. It needs
one stored number for each erasure, by its request's id; no names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from streamcl.capabilities.declaration import capabilities_of
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.monitoring.held_out import HeldOutSamples, Named, within_bytes
from streamcl.protocols import Learner, State
from streamcl.requests.terms import Guarantee

Matrix: TypeAlias = npt.NDArray[np.float64]
Pair: TypeAlias = tuple[Named, str]
ErasedBy: TypeAlias = Callable[[Named, str], str | None]
RelapsePolicy: TypeAlias = Literal["repeat", "report"]

NAMED: tuple[Named, ...] = ("class", "subject")
FEATURE_CHUNK = 16  # samples that go through the backbone together
DEVIATIONS = 3.0  # standard errors by which separability must have risen
MIN_HELD_OUT = 8  # samples of an erasure, and of others, under which it is not tested
ERASURES_PER_TEST = 16  # erasures tested by held-out samples at one shift; the next test goes on from there
MAX_CARRIED_BYTES = 64 << 20  # of held-out images that a repeated request carries at most
REPEAT_MARK = "-again-"  # between a request's id and the offset at which it is repeated
MAX_REPEATS = 3  # times that an erasure is repeated before relapses are only reported
NOT_REPEATED = frozenset({"head_only"})  # methods that repair nothing, so that repeating them changes nothing


@dataclass(slots=True)
class ErasureRecord:
    """One erasure. separability: right after it; None where it cannot be tested."""

    method: str
    guarantee: Guarantee
    separability: float | None
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class SeparabilityScore:
    """How well `count` held-out samples are separated from `others` more: an area under the ROC curve."""

    area: float
    count: int
    others: int

    def has_risen_from(self, before: float | None) -> bool:
        """Return whether it has risen by more than chance explains."""
        if before is None:
            return False
        return self.area - before > DEVIATIONS * standard_error(before, self.count, self.others)


@dataclass(frozen=True, slots=True)
class RelapseFinding:
    """One relapse: figures to log, without names, and the request that repeats the erasure, if any does."""

    figures: Mapping[str, Any]
    request: ForgetRequest | None


class RelapseMonitor:
    """Tests erasures again: `record` right after each, `retest` at every later shift.

    An exact erasure cannot come back by itself: only its name is looked for. For others the source's held-out
    samples of the class or the subject are separated from others by the learner's features, and compared with
    the separability right after the erasure. Single samples cannot be tested: their ids are not kept.

    Args:
        erased_by: returns the request that erased a class or a subject first (`Ledger.erased_by`).
        held_out: the source's held-out samples.
        policy: whether a relapse is erased again or only reported.
    """

    def __init__(
        self, erased_by: ErasedBy, held_out: HeldOutSamples, policy: RelapsePolicy = "repeat"
    ) -> None:
        self._erased_by, self._held_out, self._policy = erased_by, held_out, policy
        self._known: dict[str, ErasureRecord] = {}
        self._next = 0

    def record(self, request: ForgetRequest, method: str, guarantee: Guarantee, learner: Learner) -> None:
        """Record an erasure, and how well what it erased can be separated from the rest right now."""
        pair = _named(request)
        first = (pair and self._erased_by(*pair)) or request.id
        before = self._known.get(first)
        if before is not None and method == "no_op":
            return  # requested again, and nothing was done since
        repeats = before.repeats if before is not None and REPEAT_MARK in request.id else 0
        score = self._scores(learner, [pair]).get(pair) if pair and guarantee != "exact" else None
        self._known[first] = ErasureRecord(method, guarantee, None if score is None else score.area, repeats)

    def retest(self, learner: Learner, offset: int) -> tuple[dict[str, Any], list[RelapseFinding]]:
        """Return figures of the test to log, empty where nothing was erased; and every relapse found."""
        if not self._known:
            return {}, []
        named: list[Pair] = [("class", name) for name in learner.classes if self._is_erased("class", name)]
        now = self._scores(learner, self._due())
        risen = [p for p, score in now.items() if score.has_risen_from(self._erased(p)[1].separability)]
        relapsed = list(dict.fromkeys([*named, *risen]))
        figures = {**self._counts(), "tested": len(now), "named": len(named), "risen": len(risen)}
        found = [self._found(pair, pair in named, now.get(pair), offset) for pair in relapsed]
        return {"reason": _summary(figures), "relapsed": len(found), **figures}, found

    def state_dict(self) -> State:
        """Return one number and a few words for each erasure, by its request's id."""
        return {"known": {key: asdict(each) for key, each in self._known.items()}, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the monitor that returned `state`."""
        self._known = {key: ErasureRecord(**each) for key, each in state["known"].items()}
        self._next = int(state["next"])

    def _counts(self) -> dict[str, int]:
        """Return the numbers of erasures, of those that cannot come back, and of those not testable."""
        exact = sum(each.guarantee == "exact" for each in self._known.values())
        blind = sum(each.guarantee != "exact" and each.separability is None for each in self._known.values())
        return {"erasures": len(self._known), "exact": exact, "not_testable": blind}

    def _due(self) -> list[Pair]:
        """Return the testable erasures whose turn it is, as the source's held-out samples name them."""
        testable = {key for key, each in self._known.items() if each.separability is not None}
        if not testable:
            return []
        every = [pair for kind in NAMED for pair in ((kind, name) for name in self._held_out.names(kind))]
        found = [pair for pair in every if self._erased_by(*pair) in testable]
        start = self._next % max(1, len(found))
        turn = [*found[start:], *found[:start]][:ERASURES_PER_TEST]
        self._next = start + len(turn)
        return turn

    def _scores(self, learner: Learner, pairs: Sequence[Pair]) -> dict[Pair, SeparabilityScore]:
        """Return the separability of each that can be tested: with held-out samples and features."""
        extract = capabilities_of(learner).features
        if extract is None or not pairs:
            return {}
        samples = {pair: held for pair in pairs if len(held := self._held_out.of(*pair)) >= MIN_HELD_OUT}
        others = self._held_out.others(self._is_erased) if samples else []
        if len(others) < MIN_HELD_OUT:
            return {}
        features = features_of(extract, others)
        return {
            pair: SeparabilityScore(
                separability(features_of(extract, held), features), len(held), len(others)
            )
            for pair, held in samples.items()
        }

    def _found(self, pair: Pair, named: bool, now: SeparabilityScore | None, offset: int) -> RelapseFinding:
        request, erased = self._erased(pair)
        again = self._again(pair, named, offset)
        if again is not None:
            erased.repeats += 1
        figures = {
            "reason": "the learner names it again" if named else "its features separate it from others again",
            "request": request,
            "before": erased.separability,
            "now": None if now is None else now.area,
            "again": None if again is None else again.id,
        }
        return RelapseFinding(figures, again)

    def _again(self, pair: Pair, named: bool, offset: int) -> ForgetRequest | None:
        """Return the request to erase it once more, by the same method, with held-out samples to forget."""
        (kind, name), (request, erased) = pair, self._erased(pair)
        useless = not named and erased.method in NOT_REPEATED
        if self._policy != "repeat" or useless or erased.repeats >= MAX_REPEATS:
            return None
        samples = [] if named else within_bytes(self._held_out.of(kind, name), MAX_CARRIED_BYTES)
        return ForgetRequest(
            id=f"{request}{REPEAT_MARK}{offset}",
            offset=offset,
            label=name if kind == "class" else None,
            subject=name if kind == "subject" else None,
            samples=tuple(samples),
            method="auto" if named else erased.method,
        )

    def _erased(self, pair: Pair) -> tuple[str, ErasureRecord]:
        request = str(self._erased_by(*pair))
        return request, self._known[request]

    def _is_erased(self, kind: Named, name: str) -> bool:
        return self._erased_by(kind, name) in self._known


def features_of(extract: Callable[[Sequence[Sample]], Any], samples: Sequence[Sample]) -> Matrix:
    """Return float64 [N, D]: the features that `extract` gives of samples as a tensor, a few at a time."""
    chunks = [samples[start : start + FEATURE_CHUNK] for start in range(0, len(samples), FEATURE_CHUNK)]
    with torch.no_grad():
        return np.concatenate([np.asarray(extract(each).cpu(), dtype=float) for each in chunks])


def separability(one: Matrix, other: Matrix) -> float:
    """Return how well two sets of rows are separated: an area under the ROC curve, 0.5 is chance.

    The direction is that between the means of every second row, applied to the rest: P(score of one > score
    of other), ties counted half.

    Args:
        one: float64 [N, D].
        other: float64 [M, D].
    """
    from scipy.stats import mannwhitneyu  # takes most of a second, and only relapse tests need it

    direction = one[::2].mean(axis=0) - other[::2].mean(axis=0)
    high, low = one[1::2] @ direction, other[1::2] @ direction
    return float(mannwhitneyu(high, low, method="asymptotic").statistic) / (len(high) * len(low))


def standard_error(area: float, one: int, other: int) -> float:
    """Return that of an area from every second of so many rows (Hanley and McNeil, 1982)."""
    a = min(max(area, 0.5), 0.999)
    m, n = max(1, one // 2), max(1, other // 2)
    first, second = a / (2 - a), 2 * a * a / (1 + a)
    return math.sqrt((a * (1 - a) + (m - 1) * (first - a * a) + (n - 1) * (second - a * a)) / (m * n))


def _named(request: ForgetRequest) -> Pair | None:
    """Return the class or the subject that the request is for, if it is for one."""
    if request.label is not None:
        return "class", request.label
    return ("subject", request.subject) if request.kind == "subject" and request.subject else None


def _summary(figures: Mapping[str, int]) -> str:
    """Return a sentence on what was tested."""
    parts = []
    if figures["exact"]:
        parts.append(f"{figures['exact']} exact: nothing is left in sums that could come back")
    if figures["tested"]:
        parts.append(f"{figures['tested']} by held-out samples")
    if figures["not_testable"]:
        parts.append(f"{figures['not_testable']} not testable: no held-out samples, or no features to see")
    return "; ".join(parts) or "the turn of these erasures comes at a later shift"
