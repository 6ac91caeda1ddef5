"""The bodies of the processes beside the web process, which starts them without importing torch itself."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from streamcl.config.options.run import RunConfig
from streamcl.runs.directory import folder_of
from streamcl.serving.image_channel import ImageSender
from streamcl.serving.learner_reports import LearnerReports
from streamcl.sources.backlog import lag_of
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots

if TYPE_CHECKING:
    from streamcl.runs.run import Run

logger = logging.getLogger(__name__)

REQUEST_POLL_SECONDS = 0.2
"""How often a learner whose stream has ended looks for requests to forget."""


def run_predictor(
    connection: Connection, folder: Path, threads: int, weights: Path, has_deadlines: bool
) -> None:
    """Predict what comes through the connection, until its other end is closed.

    weights: the folder of the file by which predictors share them. has_deadlines: whether images have some.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the web process ends this one
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from streamcl.serving.prediction.predictor import predictor_process

    predictor_process(connection, folder, threads, weights, has_deadlines=has_deadlines)


def learn_and_publish(
    config: RunConfig, reports: LearnerReports, *, every_seconds: float, follow: bool
) -> None:
    """Run the stream and publish what is learned; after its end carry out requests to forget, until SIGTERM.

    Args:
        config: of the run.
        reports: to the web process.
        every_seconds: a snapshot is published that often, where something was learned, and at each commit.
        follow: the run does not end with its source.
    """
    from streamcl.runs.open import open_run

    snapshots = Snapshots(folder_of(config) / SNAPSHOTS)
    observers = (ImageSender(reports.images),)
    with open_run(config, follow=follow, snapshots=snapshots, observers=observers) as run:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: run.stop())
        _stop_with_parent(run)
        reports.lag.follow(lambda: lag_of(run.source))
        snapshots.purge()
        _publish(run, snapshots)
        reports.published.set()
        if not run.processor.progress.finished:
            _learn(run, snapshots, every_seconds)
        if run.processor.progress.finished:
            run.finish()
            _forget_until_stopped(run, snapshots)


def _learn(run: Run, snapshots: Snapshots, every_seconds: float) -> None:
    progress = run.processor.progress
    step, due = progress.step, time.monotonic() + every_seconds
    for _ in run.processor.steps():  # while the source has nothing too, or its last batch would not be seen
        if time.monotonic() >= due and progress.step > step:
            _publish(run, snapshots)
            step, due = progress.step, time.monotonic() + every_seconds


def _forget_until_stopped(run: Run, snapshots: Snapshots) -> None:
    logger.info("the stream has ended; requests are answered, and carried out, until this is stopped")
    while not run.processor.parts.stop.is_set:
        before = snapshots.published
        run.processor.forget()
        if snapshots.published != before:
            run.finish()  # an erasure removes summary and report
        time.sleep(REQUEST_POLL_SECONDS)


def _publish(run: Run, snapshots: Snapshots) -> None:
    progress = run.processor.progress
    facts = {"finished": progress.finished}
    snapshots.publish(progress.offset, progress.step, run.prediction_state(), facts)


def _stop_with_parent(run: Run) -> None:
    """Stop the run, with a commit, where the web process has died."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        run.stop()

    threading.Thread(target=wait, name="parent", daemon=True).start()
