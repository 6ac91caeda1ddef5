"""The interface of a forgetting method: what it can erase, with which guarantee, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from streamcl.capabilities.declaration import Capabilities, capabilities_of
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.lineage.feature_binding import RowComparison
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.request_replay import RequestReplay
from streamcl.forgetting.statistics.store import StatisticsSelection
from streamcl.protocols import Learner
from streamcl.requests.terms import Guarantee

C = TypeVar("C")
LocationStatus: TypeAlias = Literal["erased", "remains", "not affected", "not reachable"]

STRENGTH: Mapping[Guarantee, int] = {"exact": 2, "bounded": 1, "approximate": 0}
"""The order of guarantees; a request that asks for one accepts it and those above it."""

CANNOT_DROP = "this learner cannot drop a class"

SHARED_PARTS = ("adapters", "optimizer moments", "importance")
"""Locations whose weights many samples train together."""


@dataclass(frozen=True, slots=True)
class RequestScope:
    """The samples that a request selects.

    learned, passed: how many of its samples were learned, and how many have passed, learned or not.
    forgotten_before: whether a tombstone for it stands already.
    chunks: reads the rows of the samples that were learned, anew at every call.
    """

    request: ForgetRequest
    learned: int
    passed: int
    forgotten_before: bool
    chunks: Callable[[], Iterator[Sequence[LineageRow]]]

    @property
    def offsets(self) -> frozenset[int]:
        """The places in the stream of the samples that were learned."""
        return frozenset(row.offset for rows in self.chunks() for row in rows)


@dataclass(frozen=True, slots=True)
class Context:
    """The learner, the samples and the stored statistics that a method works with.

    samples: retrieves the samples of rows, in order; raises ForgettingError where one is gone or differs from
        the one that was learned (another image, another label).
    unavailable: why samples cannot be retrieved at all; None where they can.
    statistics: sums stored on disk, which make that unnecessary; None where a run stores none.
    others: gives up to so many samples that need not be in scope, for repairs to retain; None where the run
        has none to give.
    drift: compares rows derived now with those that were learned (see `feature_binding`); None where nothing
        is known of these.
    replay: would learn the stream again without the samples; None where the run offers none.
    changed_features: how present features differ from those that the samples were learned with; None where no
        difference is known.
    """

    learner: Learner
    scope: RequestScope
    samples: Callable[[Sequence[LineageRow]], Sequence[Sample]]
    unavailable: str | None = None
    statistics: StatisticsSelection | None = None
    others: Callable[[int], Sequence[Sample]] | None = None
    drift: RowComparison | None = None
    replay: RequestReplay | None = None
    changed_features: str | None = None

    @property
    def capabilities(self) -> Capabilities:
        """The learner's, as they are now."""
        return capabilities_of(self.learner)


@dataclass(frozen=True, slots=True)
class DataLocation:
    """One place where the data could be, and what was done there or why nothing had to be."""

    name: str
    status: LocationStatus
    explanation: str


@dataclass(frozen=True, slots=True)
class ErasureResult:
    """The result of an erasure: plain values, no ids, no names, no labels; it goes into the receipt.

    residual: what risk remains, in one plain sentence. figures: what shows the guarantee, by name.
    """

    method: str
    guarantee: Guarantee
    residual: str
    locations: tuple[DataLocation, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class ForgettingMethod(Protocol):
    """A way to erase. Stateless: all that it needs is the context, so it can be repeated after a crash."""

    @property
    def name(self) -> str:
        """The name by which a request selects it."""

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee that it gives where it can."""

    @property
    def cost(self) -> int:
        """Of equal guarantees the method of the least cost is taken.

        0 does nothing, 10 drops a part that is there, 20 subtracts statistics, 30 gives up something trained,
        40 and more repair weights, 90 learns the stream again.
        """

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return why it cannot keep its guarantee for this request, or None; change nothing, be cheap."""

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Erase from the learner's state, in memory; the eraser erases on disk.

        Raise ForgettingError, with the learner as it was, where it turns out that it cannot.
        """


def required(capability: C | None, reason: str) -> C:
    """Return a capability of a learner. Raise ForgettingError with the reason where it lacks it."""
    if capability is None:
        raise ForgettingError(reason)
    return capability


def shared_weights(context: Context) -> tuple[str, ...]:
    """Return the names of the learner's shared weights that the request's samples have trained."""
    trained_by = context.capabilities.shared_weights
    return () if trained_by is None else trained_by(context.scope.chunks())


def cannot_drop(request: ForgetRequest, context: Context) -> bool:
    """Return whether the request is for a class that the learner knows and has no means to drop."""
    return _names_known(request, context) and context.capabilities.drop_class is None


def drop_class(request: ForgetRequest, context: Context) -> bool:
    """Drop the class that the request is for; return whether there was one to drop."""
    if not _names_known(request, context):
        return False
    required(context.capabilities.drop_class, CANNOT_DROP)(str(request.label))
    return True


def drop_emptied(learner: Learner, names: Sequence[str]) -> tuple[DataLocation, ...]:
    """Drop the classes of which no learned sample is left, as if none had come.

    Return what receipts say of those that the learner cannot drop.
    """
    known = [name for name in names if name in learner.classes]
    if not known:
        return ()
    if (drop := capabilities_of(learner).drop_class) is None:
        why = f"{len(known)} classes of which no sample is left: this learner cannot drop a class"
        return (DataLocation("class names", "remains", why),)
    for name in known:
        drop(name)
    return (DataLocation("class names", "erased", f"{len(known)} classes of which no sample is left"),)


def purge(request: ForgetRequest, context: Context) -> tuple[DataLocation, ...]:
    """Purge the samples in scope from buffer and stored features; return what was done there."""
    buffer, purged = context.capabilities.replay_buffer, 0
    if buffer is not None:
        ids = {row.id for rows in context.scope.chunks() for row in rows}
        label = request.label if request.kind == "class" else None
        purged = buffer.purge(
            lambda sample: sample.id in ids or (label is not None and sample.label == label)
        )
    held = DataLocation("hard buffer", erased_or_not(purged), f"{purged} samples were in it")
    if (stored := context.capabilities.stored_features) is None:
        return (held,)
    return (held, features_location(stored.remove(context.scope.offsets)))


def features_location(removed: int) -> DataLocation:
    """Return what receipts say of a store of features from which so many samples were removed."""
    return DataLocation("stored features", erased_or_not(removed), f"those of {removed} samples were removed")


def erased_or_not(count: int) -> LocationStatus:
    """Return the status of a location from which so many samples were erased."""
    return "erased" if count else "not affected"


def not_affected(names: Sequence[str], explanation: str) -> tuple[DataLocation, ...]:
    """Return locations of which none is affected, for one reason."""
    return tuple(DataLocation(name, "not affected", explanation) for name in names)


def knows_class(request: ForgetRequest, context: Context) -> bool:
    """Return False where the request is for a class that the learner has not learned, else True."""
    return request.kind != "class" or bool(context.scope.learned) or request.label in context.learner.classes


def _names_known(request: ForgetRequest, context: Context) -> bool:
    return request.kind == "class" and request.label in context.learner.classes
