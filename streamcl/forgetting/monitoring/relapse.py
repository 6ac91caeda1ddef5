"""Relapse: after a shift, has something erased come back? Tested without what was erased.

Erased knowledge can return when learning goes on (arXiv 2205.08096 calls its speed the anamnesis). A test
looks at the names that the learner gives, and at held-out samples of the source, which were never learned.
What is kept for it is one number for each erasure, by its request's id; no names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from streamcl.capabilities.declaration import capabilities_of
from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.monitoring.held_out import HeldOutSamples, Named, within
from streamcl.forgetting.monitoring.separability import features_of, separability, standard_error
from streamcl.protocols import Learner, State

Pair: TypeAlias = tuple[Named, str]
ErasedBy: TypeAlias = Callable[[Named, str], str | None]
RelapsePolicy: TypeAlias = Literal["repeat", "report"]

NAMED: tuple[Named, ...] = ("class", "subject")
DEVIATIONS = 3.0  # standard errors by which separability must have risen
ENOUGH = 8  # held-out samples of an erasure, and of others, under which nothing is said
AT_ONCE = 16  # erasures whose held-out samples are looked at in one test; the next test goes on from there
CARRIED = 64 << 20  # bytes of held-out images that a repeated request carries at most
AGAIN = "-again-"  # between a request's id and the offset at which it is repeated
REPEATS = 3  # times that an erasure is repeated before relapses are only reported
CLAIMLESS = frozenset({"head_only"})  # methods that repair nothing, so that repeating them changes nothing


@dataclass(slots=True)
class ErasureRecord:
    """What is remembered of an erasure. separability: right after it; None where it cannot be tested."""

    method: str
    guarantee: Guarantee
    separability: float | None
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class SeparabilityScore:
    """How well `count` held-out samples are told from `others` more."""

    area: float
    count: int
    others: int

    def has_risen_from(self, before: float | None) -> bool:
        """Whether chance does not explain it."""
        if before is None:
            return False
        return self.area - before > DEVIATIONS * standard_error(before, self.count, self.others)


@dataclass(frozen=True, slots=True)
class RelapseFinding:
    """One relapse: what to log, and the request that repeats the erasure, if that is to be done."""

    figures: Mapping[str, Any]
    again: ForgetRequest | None


class Relapse:
    """Tests erasures again: `watch` right after each, `retest` at every later shift.

    erased_by: the request that erased a class or a subject first (`Ledger.erased_by`). held_out: the source's
    held-out samples. policy: whether a relapse is erased again or only reported.
    An exact erasure cannot come back by itself: only its name is looked for. For others the source's held-out
    samples of the class or the subject are told from others by the learner's features, beside how well that
    went right after the erasure. Single samples leave nothing to test with: their ids are not kept.
    """

    def __init__(
        self, erased_by: ErasedBy, held_out: HeldOutSamples, policy: RelapsePolicy = "repeat"
    ) -> None:
        self._erased_by, self._held_out, self._policy = erased_by, held_out, policy
        self._known: dict[str, ErasureRecord] = {}
        self._next = 0

    def watch(self, request: ForgetRequest, method: str, guarantee: Guarantee, learner: Learner) -> None:
        """Remember an erasure, and how well what it erased can be told from the rest right now."""
        pair = _named(request)
        first = (pair and self._erased_by(*pair)) or request.id
        before = self._known.get(first)
        if before is not None and method == "no_op":
            return  # asked for again, and nothing was done since
        repeats = before.repeats if before is not None and AGAIN in request.id else 0
        told = self._told(learner, [pair]).get(pair) if pair and guarantee != "exact" else None
        self._known[first] = ErasureRecord(method, guarantee, None if told is None else told.area, repeats)

    def retest(self, learner: Learner, offset: int) -> tuple[dict[str, Any], list[RelapseFinding]]:
        """What to log of the test, empty where nothing was erased; and every relapse that it found."""
        if not self._known:
            return {}, []
        named: list[Pair] = [("class", name) for name in learner.classes if self._is_erased("class", name)]
        pairs = self._due()
        now = self._told(learner, pairs)
        risen = [
            pair for pair, told in now.items() if told.has_risen_from(self._erased(pair)[1].separability)
        ]
        relapsed = list(dict.fromkeys([*named, *risen]))
        figures = {**self._counts(), "tested": len(now), "named": len(named), "risen": len(risen)}
        found = [self._found(pair, pair in named, now.get(pair), offset) for pair in relapsed]
        return {"reason": _said(figures), "relapsed": len(found), **figures}, found

    def state_dict(self) -> State:
        """One number and a few words for each erasure, by its request's id."""
        return {"known": {key: asdict(each) for key, each in self._known.items()}, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the monitor that returned `state`."""
        self._known = {key: ErasureRecord(**each) for key, each in state["known"].items()}
        self._next = int(state["next"])

    def _counts(self) -> dict[str, int]:
        """How many erasures there are; which of them cannot come back, and which cannot be tested for it."""
        exact = sum(each.guarantee == "exact" for each in self._known.values())
        blind = sum(each.guarantee != "exact" and each.separability is None for each in self._known.values())
        return {"erasures": len(self._known), "exact": exact, "not_testable": blind}

    def _due(self) -> list[Pair]:
        """The testable erasures whose turn it is, as the source's held-out samples name them."""
        testable = {key for key, each in self._known.items() if each.separability is not None}
        if not testable:
            return []
        every = [pair for kind in NAMED for pair in ((kind, name) for name in self._held_out.names(kind))]
        found = [pair for pair in every if self._erased_by(*pair) in testable]
        start = self._next % max(1, len(found))
        turn = [*found[start:], *found[:start]][:AT_ONCE]
        self._next = start + len(turn)
        return turn

    def _told(self, learner: Learner, pairs: Sequence[Pair]) -> dict[Pair, SeparabilityScore]:
        """Of each that can be tested: there are held-out samples of it and of others, and features to see."""
        extract = capabilities_of(learner).features
        if extract is None or not pairs:
            return {}
        samples = {pair: held for pair in pairs if len(held := self._held_out.of(*pair)) >= ENOUGH}
        others = self._held_out.others(self._is_erased) if samples else []
        if len(others) < ENOUGH:
            return {}
        beside = features_of(extract, others)
        return {
            pair: SeparabilityScore(separability(features_of(extract, held), beside), len(held), len(others))
            for pair, held in samples.items()
        }

    def _found(self, pair: Pair, named: bool, now: SeparabilityScore | None, offset: int) -> RelapseFinding:
        request, erased = self._erased(pair)
        again = self._again(pair, named, offset)
        if again is not None:
            erased.repeats += 1
        figures = {
            "reason": "the learner names it again" if named else "its features tell it from others again",
            "request": request,
            "before": erased.separability,
            "now": None if now is None else now.area,
            "again": None if again is None else again.id,
        }
        return RelapseFinding(figures, again)

    def _again(self, pair: Pair, named: bool, offset: int) -> ForgetRequest | None:
        """The erasure once more, by the same method, shown what is to go by held-out samples."""
        (kind, name), (request, erased) = pair, self._erased(pair)
        useless = not named and erased.method in CLAIMLESS
        if self._policy != "repeat" or useless or erased.repeats >= REPEATS:
            return None
        samples = [] if named else within(self._held_out.of(kind, name), CARRIED)
        return ForgetRequest(
            id=f"{request}{AGAIN}{offset}",
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


def _named(request: ForgetRequest) -> Pair | None:
    """The class or the subject that the request is for, if it is for one."""
    if request.label is not None:
        return "class", request.label
    return ("subject", request.subject) if request.kind == "subject" and request.subject else None


def _said(figures: Mapping[str, int]) -> str:
    """What was tested, in words."""
    parts = []
    if figures["exact"]:
        parts.append(f"{figures['exact']} exact: nothing is left in sums that could come back")
    if figures["tested"]:
        parts.append(f"{figures['tested']} by held-out samples")
    if figures["not_testable"]:
        parts.append(f"{figures['not_testable']} not testable: no held-out samples, or no features to see")
    return "; ".join(parts) or "the turn of these erasures comes at a later shift"
