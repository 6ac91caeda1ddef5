"""What the loop works with, each a Protocol of what it asks; source, learner and sink are in `protocols`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamcl.events import Batch, ForgetRequest, PredictionRecord, Sample
from streamcl.protocols import Stateful


class Scores(Stateful, Protocol):
    """Prequential figures (see streamcl.metrics.Prequential)."""

    def update(self, predictions: Sequence[PredictionRecord], domains: Sequence[str | None]) -> None:
        """Count the predictions; `domains` names each one's domain."""
        ...

    @property
    def accuracy(self) -> float | None:
        """Since the beginning."""
        ...

    @property
    def window_accuracy(self) -> float | None:
        """Lately."""
        ...


class History(Stateful, Protocol):
    """Held-out accuracies over time (see streamcl.metrics.HoldoutHistory)."""

    def record(
        self,
        offset: int,
        accuracies: Mapping[str, float],
        sizes: Mapping[str, int],
        taught: Sequence[str],
        seen: float | None,
    ) -> None:
        """Take one examination; `seen` is the accuracy over the classes seen so far."""
        ...


class ThumbnailStore(Stateful, Protocol):
    """Keeps thumbnails of samples around shifts (see streamcl.storage.thumbnails.Gallery)."""

    def keep(self, offset: int, samples: Sequence[Sample], predictions: Sequence[PredictionRecord]) -> None:
        """Keep some of the samples of the batch that showed a shift."""
        ...


class Forgetting(Stateful, Protocol):
    """Carries requests out between batches (see streamcl.forgetting.service.ForgettingService)."""

    def submit(self, request: ForgetRequest) -> None:
        """Take in a request; it is durable when this returns."""
        ...

    def pending(self, offset: int) -> Sequence[ForgetRequest]:
        """What is to be carried out before the batch at `offset`."""
        ...

    def overdue(self) -> Sequence[Mapping[str, Any]]:
        """What to log of requests whose deadline has passed, each once."""
        ...

    def erase(self, request: ForgetRequest, offset: int) -> Mapping[str, Any] | None:
        """Erase in memory, or change nothing; what to log, None where that was done before a crash."""
        ...

    def retest(self, offset: int) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Test whether something erased has come back, and ask for its erasure anew; what to log, by kind."""
        ...

    def seal(self, request: ForgetRequest) -> None:
        """After the commit: leave nothing older behind, and write the receipt."""
        ...

    def admit(self, batch: Batch) -> Batch:
        """The batch without what was forgotten; such records keep their offsets and lose their ids."""
        ...

    def note(self, batch: Batch, *, learned: Collection[int], segment: int) -> None:
        """Remember what has passed, and the offsets of the samples that were learned."""
        ...

    def flush(self) -> None:
        """Make what was noted durable."""
        ...

    def begin(self) -> None:
        """Start with a stream of which nothing has passed."""
        ...

    def truncate(self, offset: int) -> None:
        """Give up what was noted at or after an offset."""
        ...


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """What the clock says of a run so far; part of no state."""

    images_per_s: float | None
    seconds: float
    memory_mb: float


class RunMeter(Stateful, Protocol):
    """Looks at the clock for the metrics; what it reads decides nothing."""

    def read(self, images: int) -> RunMetrics:
        """The figures once `images` records have passed."""
        ...
