"""Runs the cells of a suite, each in a directory of its own: in order, or in parallel worker processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from streamcl.benchmark.feature_cache import FeatureCache
from streamcl.benchmark.joint import joint_summary
from streamcl.benchmark.suite import Cell
from streamcl.config.compatibility import differences
from streamcl.config.load import dump_config, load_config
from streamcl.errors import ConfigError, RunBusy, StreamclError
from streamcl.factory.backbone import SharedBackbones
from streamcl.runs.directory import CHECKPOINTS, CONFIG, SUMMARY
from streamcl.runs.open import open_run
from streamcl.storage import files


class SharedResources(SharedBackbones):
    """Frozen backbones and their features, which all cells of a process share."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_cache = FeatureCache()


def read_summary(cell: Cell) -> dict[str, Any] | None:
    """Return the summary of a finished cell, else None.

    Raises:
        ConfigError: the cell's directory holds a run of another configuration.
    """
    folder = cell.folder
    if (folder / CONFIG).exists():
        changed = [
            each
            for each in differences(load_config(folder / CONFIG), cell.config)
            if each.path not in {"run_dir", "name"} and each.new != "auto"  # a run keeps what auto was
        ]
        if changed:
            raise ConfigError(
                f"{folder} was run with another configuration: {changed[0]}",
                hint="choose another --out, or remove that folder to run the cell anew",
            )
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def run_cell(cell: Cell, shared: SharedResources) -> dict[str, Any]:
    """Run the cell to its end, from its last checkpoint, and write and return its summary.

    Checkpoints are removed once the summary is written: those of closed forms are large.
    """
    folder = cell.folder
    if cell.joint is not None:
        files.make_folder(folder)
        files.atomic_write(folder / CONFIG, dump_config(cell.config).encode())
        summary = joint_summary(cell.config, cell.joint, shared.backbone)
    else:
        with open_run(cell.config, vit=shared.backbone) as run:
            shared.feature_cache.attach(run.learner, cell.config)
            for _ in run:
                pass
            summary = run.summary()
    files.atomic_write(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return summary


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """The summary of a cell, or the reason why there is none, with the error where it failed."""

    summary: dict[str, Any] | None
    reason: str = ""
    failure: StreamclError | None = None


def run_cells(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, CellOutcome]]:
    """Yield every cell with its outcome: in order, or with several jobs as cells end.

    Each job is a process with its share of the cores, which ends with this one. It stays with a data set
    while there are cells of it, so that features of an image are computed once.

    Raises:
        ConfigError: a cell's directory holds a run of another configuration.
    """
    if jobs > 1:
        yield from _Workers(list(cells), min(jobs, len(cells))).outcomes()
        return
    shared = SharedResources()
    for cell in cells:
        yield cell, run_or_skip(cell, shared)


def run_or_skip(cell: Cell, shared: SharedResources) -> CellOutcome:
    """Run a cell unless its data is missing or another process is running or has finished it."""
    if (summary := read_summary(cell)) is not None:
        return CellOutcome(summary)
    if cell.missing is not None:
        return CellOutcome(None, f"skipped: {cell.missing} is not here")
    try:
        return CellOutcome(run_cell(cell, shared))
    except RunBusy:
        return CellOutcome(None, "another process is running it")
    except ConfigError:
        raise
    except StreamclError as error:
        return CellOutcome(None, f"failed: {error}", error)


def next_cell(waiting: Sequence[Cell], own: str | None, others: Sequence[str | None]) -> Cell:
    """Return the next cell for a job: of its data set, else of one that no other job has, else the first."""
    for fits in (lambda cell: cell.source == own, lambda cell: cell.source not in others):
        if found := next(filter(fits, waiting), None):
            return found
    return waiting[0]


class _Workers:
    """Worker processes that run one cell each at a time."""

    def __init__(self, waiting: list[Cell], count: int) -> None:
        self._waiting = waiting
        self._threads = max(1, (os.cpu_count() or 1) // max(1, count))
        self._pools = [self._pool() for _ in range(count)]
        self._at: list[str | None] = [None] * count
        self._running: dict[Future[CellOutcome], tuple[int, Cell]] = {}

    def outcomes(self) -> Iterator[tuple[Cell, CellOutcome]]:
        """Yield cells with their outcomes as they end; closed early, wait for running cells only."""
        try:
            for number in range(len(self._pools)):
                self._submit(number)
            while self._running:
                ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield self._collect(future)
        finally:
            for pool in self._pools:
                pool.shutdown(cancel_futures=True)

    def _submit(self, job: int) -> None:
        """Submit a job's next cell, if there is one."""
        if not self._waiting:
            return
        others = [source for number, source in enumerate(self._at) if number != job]
        cell = next_cell(self._waiting, self._at[job], others)
        self._waiting.remove(cell)
        self._at[job] = cell.source
        self._running[self._pools[job].submit(_run_in_worker, cell)] = job, cell

    def _collect(self, future: Future[CellOutcome]) -> tuple[Cell, CellOutcome]:
        """Return the outcome of a cell and submit the next one, in a new process where the old one died."""
        job, cell = self._running.pop(future)
        try:
            outcome = future.result()
        except BrokenExecutor:
            error = StreamclError(
                "its process was killed", hint="run the command again; it continues from the last checkpoint"
            )
            outcome = CellOutcome(None, f"failed: {error}", error)
            self._pools[job] = self._pool()
        self._submit(job)
        return cell, outcome

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
        level = logging.getLogger("streamcl").getEffectiveLevel()
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(self._threads, level))


_shared = cache(SharedResources)
"""Returns the one `SharedResources` of a worker process."""


def _begin(threads: int, level: int) -> None:
    """Take a share of the cores; write messages to stderr, as many as the command that began this process."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("streamcl").setLevel(level)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent; a later run continues its cell from the last checkpoint."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _run_in_worker(cell: Cell) -> CellOutcome:
    return run_or_skip(cell, _shared())
