"""Runs the web process: the learner beside it, the predictors below it, until a signal stops all of them."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import FrameType

from starlette.applications import Starlette

from streamcl.serving.app import build_app
from streamcl.serving.batching import Batcher
from streamcl.serving.http_server import STOPPED_BY_SIGNAL, bind_socket, run_until_stopped
from streamcl.serving.limits import refuse_open_network
from streamcl.serving.pool import PredictorOptions, PredictorPool
from streamcl.serving.service import ServedRun, ServingService

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server listens and how it batches.

    port: 0 takes a free one. max_delay: seconds that an image waits for others. queue: images that may wait.
    grace: seconds in which requests are answered and the learner commits after a signal.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    max_delay: float = 0.005
    queue: int = 256
    grace: float = 25.0
    predictors: PredictorOptions = field(default_factory=PredictorOptions)


def serve_run(
    run: ServedRun,
    learn: Callable[[Event], None],
    options: ServerOptions,
    say: Callable[[str], None],
) -> int:
    """Serve a run until SIGTERM or SIGINT; return the exit code.

    Args:
        run: its directory and name.
        learn: the body of the learner's process, which can be pickled; it sets the event once the first
            snapshot is published.
        options: address and batching.
        say: takes the address, once requests are answered there.

    Raises:
        ConfigError: the address is not this machine's own, or is taken.
    """
    refuse_open_network(options.host)
    listening = bind_socket(options.host, options.port)
    stopping = _Stopping()
    context = multiprocessing.get_context("spawn")
    published = context.Event()
    learner: BaseProcess = context.Process(target=learn, args=(published,), name="learner")
    with listening, stopping:
        learner.start()
        try:
            while not published.wait(0.1):
                if stopping.requested:
                    return STOPPED_BY_SIGNAL
                if not learner.is_alive():
                    return learner.exitcode or 1
            app = _app(run, learner, options)
            run_until_stopped(app, listening, say, grace=options.grace)
            return STOPPED_BY_SIGNAL
        finally:
            _end(learner, options.grace)


def _app(run: ServedRun, learner: BaseProcess, options: ServerOptions) -> Starlette:
    batcher = Batcher(max_batch=options.max_batch, max_delay=options.max_delay, capacity=options.queue)
    pool = PredictorPool(run.folder, batcher, options.predictors)
    return build_app(ServingService(run, batcher, pool, learner.is_alive))


def _end(learner: BaseProcess, grace: float) -> None:
    """Let the learner commit and end; kill it where it does not within `grace` seconds."""
    if learner.is_alive():
        learner.terminate()
        learner.join(grace)
    if learner.is_alive():
        logger.warning("the learner did not end within %g s; its last checkpoint stands", grace)
        learner.kill()
        learner.join()


class _Stopping:
    """Notes SIGTERM and SIGINT, which uvicorn takes over while it runs and raises again at its end."""

    requested = False

    def __enter__(self) -> _Stopping:
        self._before = {each: signal.signal(each, self._note) for each in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
