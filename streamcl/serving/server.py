"""Runs the web process: the learner beside it, the predictors below it, until a signal stops all of them."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from streamcl.errors import ConfigError
from streamcl.serving.app import build_app
from streamcl.serving.batching import Batcher
from streamcl.serving.limits import refuse_open_network
from streamcl.serving.pool import PredictorOptions, PredictorPool
from streamcl.serving.service import ServedRun, ServingService

logger = logging.getLogger(__name__)

STOPPED_BY_SIGNAL = 143
"""The exit code after a signal and a clean commit (128 + SIGTERM)."""

MAX_CONNECTIONS = 512
"""Connections at a time; each may hold a body in memory."""
BACKLOG = 2048
"""Connections that the system keeps until they are taken; uvicorn's own number."""


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
    listening = _listen(options)
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
            _listen_until_stopped(app, listening, options, say)
            return STOPPED_BY_SIGNAL
        finally:
            _end(learner, options.grace)


def _app(run: ServedRun, learner: BaseProcess, options: ServerOptions) -> Starlette:
    batcher = Batcher(max_batch=options.max_batch, max_delay=options.max_delay, capacity=options.queue)
    pool = PredictorPool(run.folder, batcher, options.predictors)
    return build_app(ServingService(run, batcher, pool, learner.is_alive))


def _listen_until_stopped(
    app: Starlette, listening: socket.socket, options: ServerOptions, say: Callable[[str], None]
) -> None:
    config = uvicorn.Config(
        app,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(options.grace),
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    listening.listen(BACKLOG)  # from here on a connection waits to be answered, and is not refused
    say(f"http://{host}:{listening.getsockname()[1]}")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{options.host}:{options.port} cannot be listened on: {error.strerror}",
            hint="--port takes another one, and --port 0 any that is free",
        ) from error
    return listening


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
