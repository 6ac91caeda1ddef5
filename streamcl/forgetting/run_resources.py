"""The parts of a run that an erasure reaches, each as a Protocol of what is needed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.statistics.store import StatisticsStore
from streamcl.protocols import Learner, Source, Stateful
from streamcl.sinks.redaction import RedactableSink
from streamcl.storage import files
from streamcl.storage.files import Disk


class PurgeableCheckpoints(Protocol):
    """The run's checkpoints (see streamcl.forgetting.checkpoint_purge)."""

    def seal(self) -> Mapping[str, Any]:
        """Make the newest checkpoint durable and the only one; return its name and hash."""


class RedactableScores(Protocol):
    """Metrics by class (see streamcl.evaluation.prequential)."""

    def forget_class(self, label: str) -> None:
        """Name the class no more."""


class PurgeableThumbnails(Protocol):
    """Thumbnails that can be deleted by sample id or class (see streamcl.storage.thumbnails)."""

    def forget_class(self, label: str) -> None:
        """Delete the thumbnails of the class, and name it no more."""

    def purge(self, ids: Sequence[str]) -> int:
        """Delete the thumbnails of these samples."""


class RelapseMonitor(Stateful, Protocol):
    """Tests later whether something erased has come back (see streamcl.forgetting.monitoring.relapse)."""

    def watch(self, request: ForgetRequest, method: str, guarantee: Guarantee, learner: Learner) -> None:
        """Remember an erasure just made, without names."""

    def retest(self, learner: Learner, offset: int) -> tuple[Mapping[str, Any], Sequence[RelapseReport]]:
        """Return figures to log, empty where there was nothing to test, and each relapse found."""


class UtilityProbe(Protocol):
    """Measures accuracy on what stays (see streamcl.forgetting.monitoring.utility)."""

    def __call__(self, learner: Learner, request: ForgetRequest) -> UtilityBaseline:
        """Look at it before an erasure; changes nothing."""


class UtilityBaseline(Protocol):
    """How useful a learner was before an erasure."""

    def beside(self, learner: Learner) -> Mapping[str, float] | None:
        """Return `samples`, and the accuracy `before` and `after`; None where there are no samples."""


class RelapseReport(Protocol):
    """Something erased that the learner knows again."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """Figures to log, without names."""

    @property
    def again(self) -> ForgetRequest | None:
        """The request that erases it once more; None where it is only reported."""


@dataclass(frozen=True, slots=True)
class RunResources:
    """The parts of a run that an erasure reaches.

    fingerprint: of the run's configuration. disk: writes files.
    """

    folder: Path
    learner: Learner
    source: Source
    scores: RedactableScores
    sink: RedactableSink
    thumbnails: PurgeableThumbnails | None = None
    checkpoints: PurgeableCheckpoints | None = None
    statistics: StatisticsStore | None = None
    utility: UtilityProbe | None = None
    relapse: RelapseMonitor | None = None
    fingerprint: str = ""
    disk: Disk = field(default_factory=lambda: files.DISK)
