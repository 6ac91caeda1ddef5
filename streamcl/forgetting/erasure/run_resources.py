"""The parts of a run that an erasure reaches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import StreamclError
from streamcl.events import HoldoutPart
from streamcl.forgetting.erasure.held_out_store import HeldOutStore
from streamcl.forgetting.erasure.purging import CheckpointPurger
from streamcl.forgetting.erasure.waiting_store import WaitingStore
from streamcl.forgetting.lineage.feature_probe import FeatureProbe
from streamcl.forgetting.lineage.selection import Selection
from streamcl.forgetting.receipts.archive import SigningKeySource, no_signing_key
from streamcl.forgetting.request_replay import StreamReplay
from streamcl.forgetting.statistics.store import StatisticsSelection, StatisticsStore
from streamcl.protocols import Learner, Source
from streamcl.sinks.redaction import RunRecord
from streamcl.storage import files
from streamcl.storage.files import Disk
from streamcl.storage.snapshots import Snapshots
from streamcl.storage.thumbnails import Thumbnails

if TYPE_CHECKING:  # they bring torch, which forgetting without their tests does not need
    from streamcl.forgetting.monitoring.relapse import RelapseMonitor
    from streamcl.forgetting.monitoring.utility import UtilityProbe


class RedactableScores(Protocol):
    """Metrics by class (see streamcl.evaluation.prequential)."""

    @property
    def per_domain(self) -> Mapping[str, float]:
        """The figures of each domain, by its name."""

    def forget_class(self, label: str) -> None:
        """Name the class no more."""

    def forget_domain(self, name: str) -> None:
        """Drop the figures of a domain."""


class RedactableHistory(Protocol):
    """Held-out accuracy by part (see streamcl.evaluation.holdout_history)."""

    @property
    def parts(self) -> Sequence[str]:
        """The parts' names."""

    def forget_parts(self, names: Collection[str]) -> None:
        """Drop the figures of parts."""


class ConfidenceFit(Protocol):
    """Fits confidences to held-out samples (see streamcl.learners.holdout_calibration)."""

    def fit_after_erasure(self) -> bool:
        """Fit again, with nothing left of before; return whether that was possible."""


@dataclass(frozen=True, slots=True)
class RunResources:
    """The parts of a run that an erasure reaches.

    snapshots: those that this process publishes for others that answer requests; None where it does not.
    calibrator: fits the learner's confidences; None where they are fitted to nothing.
    fingerprint: of the run's configuration. probe: of the backbone's features. signing_key: signs receipts.
    disk: writes files.
    """

    folder: Path
    learner: Learner
    source: Source
    scores: RedactableScores
    history: RedactableHistory
    sink: RunRecord
    thumbnails: Thumbnails | None = None
    checkpoints: CheckpointPurger | None = None
    snapshots: Snapshots | None = None
    statistics: StatisticsStore | None = None
    utility: UtilityProbe | None = None
    relapse: RelapseMonitor | None = None
    waiting: WaitingStore | None = None
    replay: StreamReplay | None = None
    held_out: HeldOutStore | None = None
    calibrator: ConfidenceFit | None = None
    fingerprint: str = ""
    probe: FeatureProbe | None = None
    signing_key: SigningKeySource = no_signing_key
    disk: Disk = field(default_factory=lambda: files.DISK)

    @property
    def holdout(self) -> tuple[HoldoutPart, ...]:
        """The held-out samples: the source's own, or those that the run holds out."""
        return self.source.info.holdout or (() if self.held_out is None else self.held_out.parts)

    def holdout_version(self) -> int:
        """Return a number that changes whenever the held-out samples do."""
        return 0 if self.held_out is None else self.held_out.version

    def select_statistics(self, rows: Selection) -> StatisticsSelection | None:
        """Return the stored statistics that rows of the lineage reach; None where the run stores none."""
        return None if self.statistics is None else self.statistics.select(rows.cohorts(self.statistics.by))

    def recalibrate(self) -> bool:
        """Fit confidences anew after an erasure; return whether nothing of before is left in them."""
        if self.calibrator is None:
            return False
        try:
            return self.calibrator.fit_after_erasure()
        except (StreamclError, OSError):  # held-out samples that cannot be read stop no erasure
            return False

    def finish_statistics(self, stored: StatisticsSelection | None) -> None:
        """End an erasure from stored statistics, for the heads that the learner has now."""
        if stored is None:
            return
        statistics = capabilities_of(self.learner).statistics
        by_rows = None if statistics is None else statistics.by_rows
        stored.finish(0 if by_rows is None else len(by_rows.widths))
