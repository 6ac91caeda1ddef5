"""Where a run that has been opened begins: at its newest good checkpoint, or at offset 0."""

from __future__ import annotations

import logging
from pathlib import Path

from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError, ConfigError
from streamcl.protocols import State
from streamcl.runs.directory import LOG
from streamcl.runs.run import Run
from streamcl.storage.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def resume(run: Run, vault: Checkpoints, *, strict: bool) -> None:
    """Go on from the newest good checkpoint; without one, make the first, at offset 0."""
    vault.sweep()
    found = vault.latest(strict=strict)
    replayable = run.source.replayable
    if not replayable and found is None:
        logger.warning(
            "the source cannot be replayed: if this run is interrupted, it cannot go on where it stopped "
            "(checkpoint.delivery: exactly_once would refuse it)"
        )
    if found is None:
        _refuse_old_logs(run.folder, resumable=run.config.checkpoint is not None)
        begin_or_restore(run, None)
        return
    finished = found.state["progress"]["finished"]
    if not replayable and not finished:
        raise CheckpointError(
            f"the run in {run.folder} stopped at offset {found.offset}; its source cannot go back there",
            hint="start over with --fresh, or give the source a state_dict and load_state_dict",
        )
    state = found.state if replayable else {**found.state, "source": run.source.state_dict()}
    if (before := state.get("ranks", 1)) != run.group.world_size:
        logger.info(
            "%d ranks came so far, %d go on; sums may differ in their last bits",
            before,
            run.group.world_size,
        )
    if not finished:
        logger.info("going on from offset %d (step %d)", found.offset, found.step)
    begin_or_restore(run, state)


def begin_or_restore(run: Run, found: State | None) -> None:
    """Go where the first rank goes: on from the state that it found, or to the beginning."""
    state = run.group.broadcast_object(found)
    if state is None:
        run.processor.begin()
        return
    run.processor.restore(state)
    if run.processor.progress.finished and run.source.replayable:
        run.processor.forget()  # no batch will come before which it could be done


def reopen(run: Run, earlier: RunConfig | None) -> None:
    """A run that ended at its limit goes on under a higher one."""
    progress, limit = run.processor.progress, run.config.max_samples
    ended_there = (
        earlier is not None and earlier.max_samples is not None and progress.offset >= earlier.max_samples
    )
    if progress.finished and ended_there and (limit is None or limit > progress.offset):
        run.processor.reopen()


def _refuse_old_logs(folder: Path, *, resumable: bool) -> None:
    """Logs without a checkpoint are an interrupted start, or the whole of a run that keeps none."""
    if not resumable and (folder / LOG).exists():
        raise ConfigError(
            f"{folder} holds the records of an earlier run that kept no checkpoint",
            hint="--fresh moves it aside; or choose another run_dir",
        )
