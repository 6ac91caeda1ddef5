"""Attempts the cells of a suite one after the other, or side by side in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from streamcl.benchmark.cell import Shared, finished, run_cell
from streamcl.benchmark.suite import Cell
from streamcl.errors import ConfigError, RunBusy, StreamclError


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a cell: its summary, or the reason why there is none, and the error where it failed."""

    summary: dict[str, Any] | None
    reason: str = ""
    failure: StreamclError | None = None


def attempts(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Attempt]]:
    """Every cell with what came of it: in order, or with more than one job as they come to their ends.

    Each job is a process with its share of the cores. It stays with a data set while there are cells of it,
    whose images it reads once for all of them. Raises ConfigError where a cell cannot run as it is asked to.
    """
    if jobs > 1:
        yield from _side_by_side(list(cells), jobs)
        return
    shared = Shared()
    for cell in cells:
        yield cell, attempt(cell, shared)


def attempt(cell: Cell, shared: Shared) -> Attempt:
    """Run a cell to its end, unless its data is missing, or another process is at it or has done it."""
    if (summary := finished(cell)) is not None:
        return Attempt(summary)
    if cell.missing is not None:
        return Attempt(None, f"skipped: {cell.missing} is not here")
    try:
        return Attempt(run_cell(cell, shared))
    except RunBusy:
        return Attempt(None, "another process is running it")
    except ConfigError:
        raise
    except StreamclError as error:
        return Attempt(None, f"failed: {error}", error)


def choose_workers(waiting: Sequence[Cell], own: str | None, others: Sequence[str | None]) -> Cell:
    """The next cell for a job: of its own data set, else of one that no other job is at, else the first."""
    for fits in (lambda cell: cell.source == own, lambda cell: cell.source not in others):
        if found := next(filter(fits, waiting), None):
            return found
    return waiting[0]


class _Jobs:
    """Processes that attempt one cell each at a time."""

    def __init__(self, waiting: list[Cell], count: int) -> None:
        self._waiting = waiting
        self._threads = max(1, (os.cpu_count() or 1) // count)
        self._pools = [self._pool() for _ in range(count)]
        self._at: list[str | None] = [None] * count
        self.running: dict[Future[Attempt], tuple[int, Cell]] = {}

    def give(self, job: int) -> None:
        """Hand a job its next cell, if there is one."""
        if not self._waiting:
            return
        others = [source for number, source in enumerate(self._at) if number != job]
        cell = choose_workers(self._waiting, self._at[job], others)
        self._waiting.remove(cell)
        self._at[job] = cell.source
        self.running[self._pools[job].submit(_attempt_here, cell)] = job, cell

    def take(self, future: Future[Attempt]) -> tuple[Cell, Attempt]:
        """What came of a cell; its job goes on with another one, in a new process where the old one died."""
        job, cell = self.running.pop(future)
        try:
            came = future.result()
        except BrokenExecutor:
            error = StreamclError("its process was killed", hint="run the command again; it goes on there")
            came = Attempt(None, f"failed: {error}", error)
            self._pools[job] = self._pool()
        self.give(job)
        return cell, came

    def close(self) -> None:
        """Wait for what is running; begin nothing more."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
        level = logging.getLogger("streamcl").getEffectiveLevel()
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(self._threads, level))


def _side_by_side(waiting: list[Cell], count: int) -> Iterator[tuple[Cell, Attempt]]:
    count = min(count, len(waiting))
    jobs = _Jobs(waiting, count)
    try:
        for number in range(count):
            jobs.give(number)
        while jobs.running:
            ended, _ = wait(jobs.running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield jobs.take(future)
    finally:
        jobs.close()


_shared: list[Shared] = []
"""Of a job's own process: one, once it has attempted a cell."""


def _begin(threads: int, level: int) -> None:
    """Take a share of the cores; write messages to stderr, as many as the command that began this process."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("streamcl").setLevel(level)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A job outlives nobody who could use what it does; its cell goes on where it stopped."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _attempt_here(cell: Cell) -> Attempt:
    if not _shared:
        _shared.append(Shared())
    return attempt(cell, _shared[0])
