"""Runs the web process: the learner beside it, the predictors below it, until a signal stops all of them."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple

from starlette.applications import Starlette

from streamcl.errors import EXIT_STOPPED, ConfigError
from streamcl.serving.access.access_control import DEFAULT_RATE, AccessOptions
from streamcl.serving.access.access_log import ACCESS_LOG
from streamcl.serving.access.limits import TOKEN_HINT, is_local, refuse_open_network
from streamcl.serving.access.tokens import TokenFile
from streamcl.serving.app import build_app
from streamcl.serving.http_server import NetworkOptions, bind_socket, run_until_stopped
from streamcl.serving.label_studio.label_studio import LabelStudioServer
from streamcl.serving.learner_reports import LearnerReports, SharedLag
from streamcl.serving.prediction.batching import Batcher
from streamcl.serving.prediction.pool import PredictorOptions, PredictorPool
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
    access: AccessOptions = field(default_factory=AccessOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    label_studio: LabelStudioServer | None = None


def serve_run(
    run: ServedRun,
    learn: Callable[[LearnerReports], None],
    options: ServerOptions,
    say: Callable[[str], None],
) -> int:
    """Serve a run until SIGTERM or SIGINT; return the exit code.

    Args:
        run: its directory and name.
        learn: the body of the learner's process, which can be pickled.
        options: address and batching.
        say: takes the address, once requests are answered there.

    Raises:
        ConfigError: the address is taken, or others can reach it and there is no token; a certificate or the
            file of tokens cannot be used.
    """
    access = effective_access(run, options)
    options.network.check()
    listening = bind_socket(options.host, options.port)
    stopping = _Stopping()
    context = multiprocessing.get_context("spawn")
    published, (images, sent_images) = context.Event(), context.Pipe(duplex=False)
    lag = SharedLag(context)
    reports = LearnerReports(published, sent_images, lag)
    learner: BaseProcess = context.Process(target=learn, args=(reports,), name="learner")
    with listening, stopping:
        learner.start()
        sent_images.close()  # the learner's end is its own: when it dies, this one notices
        try:
            while not published.wait(0.1):
                if stopping.requested:
                    return EXIT_STOPPED
                if not learner.is_alive():
                    return learner.exitcode or 1
            app = _app(run, _LearnerEnd(learner, images, lag), options, access)
            run_until_stopped(
                app,
                listening,
                say,
                grace=options.grace,
                closing=app.state.end_updates,
                network=options.network,
            )
            return EXIT_STOPPED
        finally:
            _end(learner, options.grace)


def effective_access(run: ServedRun, options: ServerOptions) -> AccessOptions:
    """Return who may use the server where it listens: everybody needs a token where others can reach it.

    Behind a proxy, too, which may stand on this machine and let others in. Raise ConfigError where a token is
    needed and there is none.
    """
    access = options.access
    if access.required or options.network.proxies or not is_local(options.host):
        has_tokens = bool(TokenFile(access.tokens).tokens())
        refuse_open_network(options.host, has_tokens=has_tokens)
        if not has_tokens:
            raise ConfigError("everybody needs a token, and there is none", hint=TOKEN_HINT)
        rate = DEFAULT_RATE if access.rate is None else access.rate
        access = replace(access, required=True, rate=rate)
    if not (is_local(options.host) or options.network.encrypted):
        logger.warning("tokens and images pass the network unencrypted: see --tls-cert and --proxy")
    return replace(access, log=run.folder / ACCESS_LOG)


class _LearnerEnd(NamedTuple):
    """The learner's process, and what it sends."""

    process: BaseProcess
    images: Connection
    lag: SharedLag


def _app(run: ServedRun, learner: _LearnerEnd, options: ServerOptions, access: AccessOptions) -> Starlette:
    batcher = Batcher(max_batch=options.max_batch, max_delay=options.max_delay, capacity=options.queue)
    pool = PredictorPool(run.folder, batcher, options.predictors)
    service = ServingService(run, batcher, pool, learner.process.is_alive, learner.lag.get)
    receive = functools.partial(service.recent.receive, learner.images)
    threading.Thread(target=receive, name="images", daemon=True).start()
    return build_app(service, access, label_studio=options.label_studio)


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
