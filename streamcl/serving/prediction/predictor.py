"""A predictor: follows the snapshots of a run, and answers by the newest one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from streamcl.errors import BadRecord, ConfigError, StreamclError
from streamcl.events import Prediction, Sample
from streamcl.factory.backbone import BackboneFactory, build_compute, build_vit, mapped_vit
from streamcl.factory.parts import build_learner
from streamcl.factory.request_image import request_sample
from streamcl.protocols import Learner
from streamcl.runs.directory import config_of
from streamcl.runs.early_prediction import DeadlinePredictor
from streamcl.runs.learner import rank_classes
from streamcl.serving.prediction.replies import PredictedImage, PredictorReply, Ranked
from streamcl.storage.snapshots import (
    SNAPSHOTS,
    SnapshotInfo,
    TornSnapshot,
    list_snapshots,
    load_snapshot,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often an idle predictor looks for a newer snapshot."""
MEASURED_IMAGES = 8
"""Images that are predicted at each exit, so that the time of each group of blocks is known."""


class NoModel(StreamclError):
    """No snapshot has been published, or all were removed by an erasure and the next is not there yet."""


@dataclass(frozen=True, slots=True)
class _Served:
    path: Path
    info: SnapshotInfo
    learner: Learner
    early: DeadlinePredictor | None


class Predictor:
    """Answers by the newest snapshot, which is loaded beside the one in use and swapped in between answers.

    A snapshot that has been removed, as after an erasure, answers no more: then the newer one is waited for.

    Args:
        folder: the run's directory.
        threads: CPU threads; the learner and other predictors use the other cores.
        timeout: seconds that `refresh` waits for a snapshot where there is none.
        vit: makes the backbone.
        has_deadlines: whether images have deadlines, so that every model is prepared for them; else the first
            such image has it prepared.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        timeout: float = 10.0,
        vit: BackboneFactory = build_vit,
        has_deadlines: bool = False,
    ) -> None:
        self._snapshots = folder / SNAPSHOTS
        self._config = config_of(folder).model_copy(update={"threads": threads})
        self._compute = build_compute(self._config).for_requests()
        self._backbone = vit(self._config, self._compute)
        self._timeout, self._has_deadlines = timeout, has_deadlines
        self._early: DeadlinePredictor | None = None  # the latest; how long blocks take is the same for all
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self._loading: Future[_Served | None] | None = None
        self._served: _Served | None = None

    @property
    def model(self) -> SnapshotInfo:
        """The version in use. Raise NoModel where there is none."""
        if self._served is None:
            raise NoModel("no model has been published yet")
        return self._served.info

    def refresh(self) -> None:
        """Use the newest snapshot that is loaded, and begin to load a newer one.

        Raise NoModel where none can be used and none comes.
        """
        if self._loading is not None and self._loading.done():
            self._served, self._loading = self._loading.result() or self._served, None
        deadline = time.monotonic() + self._timeout
        while self._served is None or not self._served.path.exists():
            self._served = self._newest()
            if self._served is None and time.monotonic() > deadline:
                raise NoModel("no model has been published yet")
            if self._served is None:
                time.sleep(0.02)
        newest = list_snapshots(self._snapshots)[-1:]
        if self._loading is None and newest and newest[0] != self._served.path:
            self._loading = self._loader.submit(self._load, newest[0])

    def predict(
        self, images: Sequence[bytes], top_k: int = 1, deadline: float | None = None
    ) -> PredictorReply:
        """Return the most probable classes of encoded images, after `refresh`.

        deadline: of the monotonic clock. Images that would take longer are predicted at an earlier exit,
        where the learner has any.
        """
        if self._served is None:
            raise NoModel("no model has been published yet")
        read: list[Sample | str] = [_sample_or_reason(image) for image in images]
        samples = [each for each in read if isinstance(each, Sample)]
        if deadline is None:
            made = [PredictedImage(_named(row)) for row in rank_classes(self._served.learner, samples, top_k)]
        else:
            made = self._predict_by(deadline, samples, top_k, self._served)
        found = iter(made)
        results = tuple(each if isinstance(each, str) else next(found) for each in read)
        return PredictorReply(self._served.info, results)

    def _predict_by(
        self, deadline: float, samples: Sequence[Sample], top_k: int, served: _Served
    ) -> list[PredictedImage]:
        early = served.early
        if not self._has_deadlines:  # the first image that has one
            self._has_deadlines = True
            early = self._prepared(served.learner)
            self._served = replace(served, early=early)
        if early is None:
            return [PredictedImage(_named(row)) for row in rank_classes(served.learner, samples, top_k)]
        found = early.predict(samples, top_k, deadline - time.monotonic())
        return [PredictedImage(_named(each.ranked), each.exit + 1, round(each.cost, 4)) for each in found]

    def close(self) -> None:
        """End the thread that loads snapshots."""
        self._loader.shutdown()

    def _newest(self) -> _Served | None:
        """Load the newest snapshot that is complete, after one that is being loaded."""
        if self._loading is not None:
            self._loading.result()
            self._loading = None
        for path in reversed(list_snapshots(self._snapshots)):
            if (loaded := self._load(path)) is not None and path.exists():
                return loaded
        return None

    def _load(self, path: Path) -> _Served | None:
        try:
            found = load_snapshot(path)
        except TornSnapshot as error:
            logger.warning("a snapshot cannot be used: %s", error)
            return None
        learner = build_learner(self._config, self._backbone, self._compute)
        learner.load_state_dict(found.state)
        blank = Sample("blank", np.zeros((8, 8, 3), np.uint8))
        learner.predict([blank])  # so that no request waits for the weights to be solved
        return _Served(path, found.info, learner, self._prepared(learner) if self._has_deadlines else None)

    def _prepared(self, learner: Learner) -> DeadlinePredictor | None:
        """Return what predicts by a deadline, with the weights of all exits solved; None without exits."""
        try:
            early = DeadlinePredictor(learner, self._early)
        except ConfigError:
            return None
        early.measure([Sample("blank", np.zeros((64, 64, 3), np.uint8))] * MEASURED_IMAGES)
        self._early = early
        return early


def predictor_process(
    connection: Connection, folder: Path, threads: int, weights: Path, *, has_deadlines: bool = False
) -> None:
    """Answer what comes through the connection until its other end is closed: the body of a process.

    First a SnapshotInfo is sent: a model is loaded, and it has predicted an image. Then each (images, top_k,
    deadline) is answered by a PredictorReply, or by a string that says why it cannot be.

    weights: the folder of the file by which predictors share them; it goes with the web process.
    """
    predictor = Predictor(folder, threads=threads, vit=mapped_vit(weights), has_deadlines=has_deadlines)
    try:
        predictor.refresh()
        connection.send(predictor.model)
        while True:
            if not connection.poll(POLL_SECONDS):
                _refresh_idle(predictor)
                continue
            images, top_k, deadline = connection.recv()
            connection.send(_reply(predictor, images, top_k, deadline))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the web process has died
        shutil.rmtree(weights, ignore_errors=True)
    finally:
        predictor.close()


def _refresh_idle(predictor: Predictor) -> None:
    try:
        predictor.refresh()
    except NoModel as error:
        logger.warning("%s", error)


def _reply(
    predictor: Predictor, images: Sequence[bytes], top_k: int, deadline: float | None
) -> PredictorReply | str:
    try:
        predictor.refresh()
        return predictor.predict(images, top_k, deadline)
    except NoModel as error:
        return str(error)


def _sample_or_reason(encoded: bytes) -> Sample | str:
    try:
        return request_sample(encoded)
    except BadRecord as error:
        return str(error)


def _named(ranked: Sequence[Prediction]) -> Ranked:
    return tuple((each.label, each.confidence) for each in ranked if each.label is not None)
