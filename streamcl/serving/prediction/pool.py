"""The predictor processes: started, given batches, and replaced where one dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, TypeVarTuple, Unpack

from streamcl.serving.prediction.batching import Batcher, ImageOutcome, NoPredictor, WaitingImage
from streamcl.serving.prediction.replies import PredictorReply
from streamcl.storage.snapshots import SnapshotInfo

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

MAX_PREDICTORS_PER_IMAGE = 3
"""Predictors that may end while they read an image before it is refused; the image need not be the cause."""
RESTART_SECONDS = 0.5
"""The least time between two starts of a predictor, so that one which cannot start does not take a core."""


@dataclass(frozen=True, slots=True)
class PredictorOptions:
    """How many predictors there are, and how each computes.

    threads: CPU threads of each. timeout: seconds for a batch, or a start, after which one is replaced.
    deadline: seconds from the arrival of an image to its prediction, where its request has none of its own.
    """

    count: int = 1
    threads: int = 1
    timeout: float = 120.0
    deadline: float | None = None


class PredictorPool:
    """Keeps `options.count` predictor processes alive over the snapshots of a run.

    Attributes: ready (predictors that have loaded a model and predicted an image), restarts (those that
    were replaced), model (the version that predicted last; None before).
    """

    def __init__(self, folder: Path, batcher: Batcher, options: PredictorOptions) -> None:
        self.options = options
        self.ready = 0
        self.restarts = 0
        self.model: SnapshotInfo | None = None
        self._folder, self._batcher = folder, batcher
        self._started = ExitStack()
        self._threads = ThreadPoolExecutor(options.count, thread_name_prefix="predictor")
        self._slots: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the processes; called in the event loop of the batcher."""
        shared = self._started.enter_context(TemporaryDirectory(prefix="streamcl-"))  # the weights' file
        keep_alive = (self._keep_alive(Path(shared)) for _ in range(self.options.count))
        self._slots = [asyncio.create_task(each) for each in keep_alive]

    async def close(self) -> None:
        """End all processes and wait for them."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        self._threads.shutdown(wait=False)
        self._started.close()

    async def _keep_alive(self, shared: Path) -> None:
        while True:
            predictor = _PredictorProcess(self._folder, self.options, shared)
            try:
                await self._use(predictor)
            except (EOFError, OSError, TimeoutError) as error:
                logger.warning("a predictor is replaced: %s", type(error).__name__)
            finally:
                predictor.kill()
            self.restarts += 1
            await asyncio.sleep(RESTART_SECONDS)

    async def _use(self, predictor: _PredictorProcess) -> None:
        """Give batches to one process until it dies. Raise EOFError, OSError or TimeoutError then."""
        self.model = await self._in_time(predictor.receive_model)
        self.ready += 1
        try:
            while True:
                batch = await self._batch_or_death(predictor)
                try:
                    reply = await self._in_time(predictor.exchange, batch)
                except (EOFError, OSError, TimeoutError):
                    self._batcher.return_batch(batch, attempts=MAX_PREDICTORS_PER_IMAGE)
                    raise
                except asyncio.CancelledError:
                    _fail(batch, "the server is stopping")
                    raise
                self._deliver(batch, reply)
        finally:
            self.ready -= 1

    async def _in_time(self, call: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> _T:
        """Call in a thread. Raise TimeoutError after `timeout`; the call ends with the process then."""
        loop = asyncio.get_running_loop()
        called = loop.run_in_executor(self._threads, call, *args)
        return await asyncio.wait_for(called, self.options.timeout)

    async def _batch_or_death(self, predictor: _PredictorProcess) -> list[WaitingImage]:
        """Return the next batch. Raise EOFError where the process dies while none is there."""
        batch = asyncio.ensure_future(self._batcher.next_batch())
        death = asyncio.ensure_future(predictor.death())
        try:
            await asyncio.wait({batch, death}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (batch, death):
                each.cancel()
            taken, _ = await asyncio.gather(batch, death, return_exceptions=True)
        if isinstance(taken, list):  # also where the process died at that moment: then sending it fails
            return taken
        raise EOFError

    def _deliver(self, batch: Sequence[WaitingImage], reply: PredictorReply | str) -> None:
        if isinstance(reply, str):
            _fail(batch, reply)
            return
        self.model = reply.model
        for waiting, result in zip(batch, reply.results, strict=True):
            if not waiting.outcome.done():
                kept = result if isinstance(result, str) else result.cut(waiting.top_k)
                waiting.outcome.set_result(ImageOutcome(reply.model, kept))


class _PredictorProcess:
    """One process and this end of its connection."""

    def __init__(self, folder: Path, options: PredictorOptions, weights: Path) -> None:
        from streamcl.serving.processes import run_predictor

        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=run_predictor,
            args=(other, folder, options.threads, weights, options.deadline is not None),
            name="predictor",
            daemon=True,
        )
        self._process.start()
        other.close()

    def receive_model(self) -> SnapshotInfo:
        """Wait until it has predicted an image; return the version of its model."""
        model: SnapshotInfo = self._connection.recv()
        return model

    def exchange(self, batch: Sequence[WaitingImage]) -> PredictorReply | str:
        """Send the images, with the end of the time that they have, and wait for the reply."""
        ends = [each.deadline for each in batch if each.deadline is not None]
        top_k = max(each.top_k for each in batch)
        self._connection.send(([each.image for each in batch], top_k, min(ends, default=None)))
        reply: PredictorReply | str = self._connection.recv()
        return reply

    async def death(self) -> None:
        """Return when the process has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)

    def kill(self) -> None:
        """End the process at once; a thread that waits for it gets an OSError or EOFError."""
        self._process.kill()
        self._process.join()
        with contextlib.suppress(OSError):
            self._connection.close()


def _fail(batch: Sequence[WaitingImage], reason: str) -> None:
    for waiting in batch:
        if not waiting.outcome.done():
            waiting.outcome.set_exception(NoPredictor(reason))
