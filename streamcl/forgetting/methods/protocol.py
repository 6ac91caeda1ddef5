"""The interface of a forgetting method: what it can erase, with which guarantee, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from streamcl.capabilities.declaration import Capabilities, capabilities_of
from streamcl.capabilities.interfaces import Rows, StatisticsPart
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee, Sample
from streamcl.protocols import Learner

LocationStatus: TypeAlias = Literal["erased", "remains", "not affected", "not reachable"]

STRENGTH: Mapping[Guarantee, int] = {"exact": 2, "bounded": 1, "approximate": 0}
"""Which guarantee is stronger; a request that asks for one accepts it and those above it."""

CANNOT_DROP = "this learner cannot drop a class"

CHUNK = 256
"""Samples that are brought back and looked at together."""


@dataclass(frozen=True, slots=True)
class LineageRow:
    """One sample that has passed, as the lineage remembers it.

    offset: its place in the stream, unlike its id never twice the same. label: that it was learned with.
    learned: False where it was only predicted. segment: shifts found before it. content: a salted hash of
    the pixels. private: whether its privacy was "user". subject: a salted hash too.
    """

    offset: int
    id: str
    label: str | None
    learned: bool
    segment: int
    content: bytes
    private: bool = False
    subject: bytes | None = None


@dataclass(frozen=True, slots=True)
class RequestScope:
    """The samples that a request selects.

    learned, passed: how many of its samples were learned, and how many have passed, learned or not.
    forgotten_before: whether a tombstone for it stands already.
    chunks: reads the traces of the samples that were learned, anew at every call.
    """

    request: ForgetRequest
    learned: int
    passed: int
    forgotten_before: bool
    chunks: Callable[[], Iterator[Sequence[LineageRow]]]


class StatisticsView(Protocol):
    """Stored statistics of the classes or subjects that a request touches; changes are staged."""

    def whole(self, heads: int) -> bool:
        """Whether the request takes whole cohorts of which nothing is missing in the first `heads` heads."""

    def parts(self, head: int, names: Sequence[str]) -> Iterable[StatisticsPart]:
        """Those sums in a head, where they are whole. names: of the classes known."""

    def take_out(self, traces: Sequence[LineageRow], rows: Sequence[Rows]) -> None:
        """Take samples out, given their rows [n, D] in each head."""

    def drop(self) -> None:
        """Give up the sums of every cohort that the request touches."""


@dataclass(frozen=True, slots=True)
class Context:
    """The learner, the samples and the stored statistics that a method works with.

    samples: brings back the samples of traces, in order; raises ForgettingError where one is gone or is not
        the one that was learned (another image, another label).
    unavailable: why samples cannot be brought back at all; None where they can.
    kept: sums kept on disk, which make that unnecessary; None where a run keeps none.
    others: brings at most so many samples that need not be in scope, for repairs to hold on to; None where
        the run has none to give.
    """

    learner: Learner
    scope: RequestScope
    samples: Callable[[Sequence[LineageRow]], Sequence[Sample]]
    unavailable: str | None = None
    kept: StatisticsView | None = None
    others: Callable[[int], Sequence[Sample]] | None = None

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
        40 and more repair weights.
        """

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Why it cannot keep its guarantee for this request; None where it can. Changes nothing, is cheap."""

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Erase from the learner's state, in memory; the eraser erases on disk.

        Raises ForgettingError, with the learner as it was, where it turns out that it cannot.
        """


def shared_weights(context: Context) -> tuple[str, ...]:
    """Return the names of the learner's shared weights that the request's samples have trained."""
    trained_by = context.capabilities.shared_weights
    return () if trained_by is None else trained_by(context.scope.chunks())


def cannot_drop(request: ForgetRequest, context: Context) -> bool:
    """Whether the request is for a class that the learner knows and has no means to drop."""
    return _names_known(request, context) and context.capabilities.drop_class is None


def drop_class(request: ForgetRequest, context: Context) -> bool:
    """Drop the class that the request is for; return whether there was one to drop."""
    if not _names_known(request, context):
        return False
    drop = context.capabilities.drop_class
    if drop is None:
        raise ForgettingError(CANNOT_DROP)
    drop(str(request.label))
    return True


def purge(request: ForgetRequest, context: Context) -> int:
    """Purge the samples in scope from the learner's buffer; return how many there were."""
    buffer = context.capabilities.replay_buffer
    if buffer is None:
        return 0
    ids = {trace.id for traces in context.scope.chunks() for trace in traces}
    label = request.label if request.kind == "class" else None
    return buffer.purge(lambda sample: sample.id in ids or (label is not None and sample.label == label))


def _names_known(request: ForgetRequest, context: Context) -> bool:
    return request.kind == "class" and request.label in context.learner.classes


def knows(request: ForgetRequest, context: Context) -> bool:
    """Whether a request for a class names one that the learner has learned; other kinds always pass."""
    return request.kind != "class" or bool(context.scope.learned) or request.label in context.learner.classes


def weakest(guarantees: Sequence[Guarantee]) -> Guarantee:
    """The guarantee of several erasures together."""
    return min(guarantees, key=lambda each: STRENGTH[each])
