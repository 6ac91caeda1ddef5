"""The functions behind the HTTP routes: predictions, state of the server, requests to forget, receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl import __version__
from streamcl.events import ForgetRequest
from streamcl.factory.inbox import Inbox
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger, LedgerEntry
from streamcl.forgetting.ledger.requests import submit
from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt, receipt_path
from streamcl.serving.page.recent_images import RecentImages
from streamcl.serving.prediction.batching import Batcher, ImageOutcome, NoPredictor
from streamcl.serving.prediction.pool import PredictorPool
from streamcl.serving.schemas import (
    ImageResult,
    LabelOfRecord,
    LabelsAccepted,
    Learning,
    ModelVersion,
    PredictorCounts,
    PredictResponse,
    RankedClass,
    Readiness,
    RecordsAccepted,
    RequestEntry,
    RequestList,
    StatusResponse,
)
from streamcl.storage.snapshots import SNAPSHOTS, SnapshotInfo, newest_info

PREDICT_SECONDS = 60.0
"""The longest that a request waits for its predictions."""


@dataclass(frozen=True, slots=True)
class ServedRun:
    """A run that is served: its directory and name, and where it takes what people send."""

    folder: Path
    name: str
    inbox: Inbox = field(default_factory=Inbox)


class ServingService:
    """Predictions, state, requests to forget and receipts of a run that is served.

    Args:
        run: its directory and name.
        batcher: takes images.
        pool: predicts them.
        learner_alive: returns whether the learner's process is there.
        lag: returns how many records wait at the source, as the learner said last; None where it does not.

    Attributes:
        missed_deadlines: requests that were answered after their deadline.
    """

    def __init__(
        self,
        run: ServedRun,
        batcher: Batcher,
        pool: PredictorPool,
        learner_alive: Callable[[], bool],
        lag: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.batcher, self.pool = batcher, pool
        self.learner_alive, self._lag = learner_alive, lag
        self._folder, self._name, self._inbox = run.folder, run.name, run.inbox
        self.recent = RecentImages(run.folder)
        self.missed_deadlines = 0

    @property
    def folder(self) -> Path:
        """The directory of the run."""
        return self._folder

    @property
    def takes_labels(self) -> bool:
        """Whether labels of earlier records can be sent."""
        return self._inbox.labels is not None

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._name

    async def predict(
        self, images: Sequence[bytes], top_k: int, seconds: float | None = None
    ) -> PredictResponse:
        """Predict encoded images. Raise QueueFull, or NoPredictor where it cannot be done in time.

        seconds: in which to predict them, with less work where that is short; None: those of the server, if
            any.
        """
        seconds = self.pool.options.deadline if seconds is None else seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        pending = self.batcher.submit(images, top_k, deadline)
        try:
            async with asyncio.timeout(PREDICT_SECONDS):
                outcomes = await asyncio.gather(*pending)
        except TimeoutError:
            raise NoPredictor(f"no prediction within {PREDICT_SECONDS:g} s") from None
        finally:
            for each in pending:
                each.cancel()
        self.missed_deadlines += deadline is not None and time.monotonic() > deadline
        results = tuple(map(_image_result, outcomes))
        self.recent.add_predicted(images, results)
        oldest = min((each.model for each in outcomes), key=lambda model: model.number)
        return PredictResponse(model=_version(oldest), predictions=results)

    def newest(self) -> SnapshotInfo | None:
        """Return the newest version that the learner has published."""
        return newest_info(self._folder / SNAPSHOTS)

    def learning(self, newest: SnapshotInfo | None) -> Learning:
        """Return whether the stream is still learned, where `newest` is the version published last."""
        if not self.learner_alive():
            return "stopped"
        return "finished" if newest is not None and newest.facts.get("finished") else "running"

    def lag(self) -> int | None:
        """Return how many records wait at the source; None where that is not known, or nobody learns."""
        return self._lag() if self.learner_alive() else None

    def readiness(self) -> Readiness:
        """Return whether a predictor has predicted an image and lives, and whether the learner does."""
        return Readiness(**self._readiness(self.newest()))

    def status(self) -> StatusResponse:
        """Return the state of server and run."""
        newest = self.newest()
        return StatusResponse(
            **self._readiness(newest),
            run=self._name,
            newest=None if newest is None else _version(newest),
            waiting=len(self.batcher),
            capacity=self.batcher.capacity,
            lag=self.lag(),
            streamcl=__version__,
        )

    def forget(self, fields: Mapping[str, Any]) -> RequestEntry:
        """Put a request to forget into the ledger, as `streamcl forget` does; it is durable on return.

        Raise ForgettingError where it is not valid, or its key or id was used for another request.
        """
        request = ForgetRequest(**fields)
        self.recent.drop()
        with Ledger(self._folder / LEDGER) as ledger:
            return self._entry(submit(ledger, request))

    def add_records(self, records: Sequence[Mapping[str, Any]]) -> RecordsAccepted:
        """Put records into the stream; see `Inbox.add_records`."""
        found = self._inbox.add_records(records)
        return RecordsAccepted(ids=found.ids, repeated=found.repeated)

    def add_labels(self, labels: Sequence[LabelOfRecord]) -> LabelsAccepted:
        """Put the labels of earlier records into the stream; see `Inbox.add_labels`."""
        self._inbox.add_labels({each.id: each.label for each in labels})
        return LabelsAccepted(accepted=len(labels))

    def requests(self) -> RequestList:
        """Return all requests to forget."""
        with Ledger(self._folder / LEDGER) as ledger:
            return RequestList(requests=tuple(map(self._entry, ledger.entries())))

    def receipt(self, request: str) -> dict[str, Any] | None:
        """Return the receipt of a request's last attempt; None where there is none."""
        path = newest_receipt(self._folder, request)
        return read_receipt(path).to_json() if path.exists() else None

    def receipt_page(self, request: str) -> str | None:
        """Return the receipt of a request's last attempt as HTML; None where there is none."""
        path = newest_receipt(self._folder, request).with_suffix(".html")
        return path.read_text("utf-8") if path.exists() else None

    def _readiness(self, newest: SnapshotInfo | None) -> dict[str, Any]:
        pool = self.pool
        return {
            "ready": pool.ready > 0 and pool.model is not None,
            "learning": self.learning(newest),
            "predictors": PredictorCounts(
                ready=pool.ready, configured=pool.options.count, restarts=pool.restarts
            ),
            "model": None if pool.model is None else _version(pool.model),
        }

    def _entry(self, entry: LedgerEntry) -> RequestEntry:
        has_receipt = receipt_path(self._folder, entry.id).exists()
        return RequestEntry(
            id=entry.id,
            status=entry.status,
            received=entry.received,
            finished=entry.finished,
            reason=entry.reason,
            receipt=f"/v1/receipts/{entry.id}" if has_receipt else None,
        )


def _version(info: SnapshotInfo) -> ModelVersion:
    return ModelVersion(version=info.number, offset=info.offset, step=info.step, published=info.published)


def _image_result(outcome: ImageOutcome) -> ImageResult:
    if isinstance(outcome.result, str):
        return ImageResult(label=None, confidence=0.0, top=(), error=outcome.result)
    found = outcome.result
    top = tuple(RankedClass(label=name, confidence=value) for name, value in found.classes)
    best = top[0] if top else None
    return ImageResult(
        label=None if best is None else best.label,
        confidence=0.0 if best is None else best.confidence,
        top=top,
        exit=found.exit,
        work=found.work,
    )
