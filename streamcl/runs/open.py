"""Opens a run on disk, anew or where it stopped, and carries out the requests that are pending for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from streamcl.config.compatibility import differences
from streamcl.config.load import config_from_dict, load_config
from streamcl.config.options.run import RunConfig
from streamcl.distributed.agreement import check_agreement
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.errors import CheckpointError, ConfigError
from streamcl.factory.backbone import BackboneFactory, build_compute, build_vit
from streamcl.factory.source import build_source
from streamcl.factory.spool import INBOX
from streamcl.processor.ports import BatchObserver
from streamcl.protocols import Peekable, State
from streamcl.runs.assemble import assemble
from streamcl.runs.directory import (
    CHECKPOINTS,
    LOG,
    config_of,
    folder_of,
    move_aside,
    refuse_links,
    save_config,
    saved_config,
)
from streamcl.runs.run import Run
from streamcl.storage import files
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.lock import RunLock
from streamcl.storage.snapshots import Snapshots

logger = logging.getLogger(__name__)


def open_run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    fresh: bool = False,
    strict: bool = False,
    follow: bool = False,
    reopen: bool = True,
    vit: BackboneFactory = build_vit,
    group: ProcessGroup = SINGLE_PROCESS,
    snapshots: Snapshots | None = None,
    observers: tuple[BatchObserver, ...] = (),
) -> Run:
    """Return the run that a configuration describes: continued where its directory holds one, else begun.

    Args:
        config: the configuration, as a mapping, or in a file.
        fresh: move an earlier run of the same name aside first.
        strict: a damaged checkpoint is an error rather than a reason to use the one before it.
        follow: the run does not end with its source, but goes on with what is added to it.
        reopen: a finished run goes on where its source has more by now.
        vit: makes the backbone, or lends one that several runs share.
        group: the processes that run it together (see `TorchProcessGroup`), each of which calls this.
        snapshots: where each commit publishes the learner, for processes that answer requests.
        observers: given every batch after its learning step, after the run's own; they change nothing of it.

    Raises:
        RunBusy: another process holds the directory.
        ConfigError: the run in the directory was made with a configuration that this one cannot continue.
    """
    settings = _read(config)
    folder = folder_of(settings)
    check_agreement(settings, group)
    if not group.is_main:
        return _open_replica(settings, folder, vit, group)
    if fresh:
        move_aside(folder)
    files.ensure_writable(folder)
    with ExitStack() as stack:
        stack.enter_context(RunLock(folder))
        refuse_links(folder)
        files.sweep(folder)
        saved = saved_config(folder)
        settings = _with_precision(settings, saved)
        earlier = _check_earlier(settings, saved, folder)
        if snapshots is not None and settings.labels is not None and group.world_size == 1:
            files.make_folder(folder / INBOX)
        stream = partial(build_source, follow=follow)
        run = assemble(
            settings,
            folder,
            stack,
            vit=vit,
            group=group,
            stream=stream,
            snapshots=snapshots,
            observers=observers,
        )
        if saved is None:
            save_config(settings, folder)
        _resume(run, strict=strict)
        if saved is not None:  # a start that was refused leaves the one before: see `_has_more`
            save_config(settings, folder)
        if run.processor.progress.finished and reopen and (follow or _has_more(run, earlier)):
            run.processor.reopen()
            logger.info("the source has more: going on from offset %d", run.processor.progress.offset)
        group.broadcast_object(run.processor.progress.finished)
        if run.processor.progress.finished:
            run.written = run.processor.progress.step
        run.stack = stack.pop_all()
    return run


def _open_replica(settings: RunConfig, folder: Path, vit: BackboneFactory, group: ProcessGroup) -> Run:
    """Return the run of a rank that is not the first: it goes where the first one goes, and opens no file."""
    with ExitStack() as stack:
        run = assemble(settings, folder, stack, vit=vit, group=group)
        begin_or_restore(run, None)
        if not group.broadcast_object(False):
            run.processor.reopen()
        run.stack = stack.pop_all()
    return run


def execute_pending(folder: Path) -> None:
    """Carry out at once the requests pending for a run that no process works on; no batch is processed.

    Raise RunBusy where one does (it carries them out itself), ConfigError where there is no run.
    """
    config = config_of(folder)
    with open_run(config.model_copy(update={"run_dir": str(folder)}), reopen=False) as run:
        run.processor.forget()


def _read(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """Return the configuration, which may be a mapping or in a file."""
    if isinstance(config, RunConfig):
        return config
    return load_config(config) if isinstance(config, str | Path) else config_from_dict(config)


def _with_precision(settings: RunConfig, earlier: RunConfig | None) -> RunConfig:
    """Return the options with the precision that `auto` became when the run began.

    A new timing could choose another, and the run would not learn what an uninterrupted one learns.
    """
    if settings.precision != "auto":
        return settings
    begun = earlier.precision if earlier is not None else "auto"
    chosen = build_compute(settings).precision if begun == "auto" else begun
    return settings.model_copy(update={"precision": chosen})


def _check_earlier(settings: RunConfig, earlier: RunConfig | None, folder: Path) -> RunConfig | None:
    """Raise ConfigError where the saved state does not fit the new configuration; log the other changes.

    earlier: the configuration in the directory. It is returned where anything was learned under it.
    """
    settings = settings.without_requests()  # as `earlier` is
    if earlier is None or not (list_checkpoints(folder / CHECKPOINTS) or (folder / LOG).exists()):
        return None
    changed = [each for each in differences(earlier, settings) if each.path != "run_dir"]  # it was moved
    for difference in changed:
        if difference.severity != "refuse":
            logger.warning("changed since the run began: %s", difference)
    refused = tuple(str(each) for each in changed if each.severity == "refuse")
    if refused:
        raise ConfigError(
            f"the run in {folder} cannot be continued with this configuration",
            hint="undo the changes, choose another run_dir, or start over with --fresh",
            problems=(f"the run in {folder} cannot be continued with this configuration:", *refused),
        )
    return earlier


def _resume(run: Run, *, strict: bool) -> None:
    """Continue from the newest good checkpoint; without one, make the first, at offset 0."""
    run.checkpoints.sweep()
    found, replayable = run.checkpoints.latest(strict=strict), run.source.replayable
    if not replayable and found is None:
        logger.warning(
            "the source cannot be replayed: if this run is interrupted, it cannot be continued "
            "(checkpoint.delivery: exactly_once would refuse it)"
        )
    if run.source.info.length is None:
        logger.info("%s delivers records %s", run.source.info.name, run.source.guarantee)
    if found is None:
        if run.config.checkpoint is None and (run.folder / LOG).exists():
            raise ConfigError(
                f"{run.folder} holds the records of an earlier run that kept no checkpoint",
                hint="--fresh moves it aside; or choose another run_dir",
            )
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
        now = run.group.world_size
        logger.info("so far %d ranks ran it, now %d; sums may differ in their last bits", before, now)
    if not finished:
        logger.info("going on from offset %d (step %d)", found.offset, found.step)
    begin_or_restore(run, state)


def begin_or_restore(run: Run, found: State | None) -> None:
    """Restore the state that the first rank found, or begin where it found none."""
    state = run.group.broadcast_object(found)
    if state is None:
        run.processor.begin()
        return
    run.processor.restore(state)
    if run.processor.progress.finished and run.source.replayable:
        run.processor.forget()  # no batch will come before which it could be done


def _has_more(run: Run, earlier: RunConfig | None) -> bool:
    """Return whether a run that ended can go on: its limit is higher now, or its source has grown."""
    progress, limit = run.processor.progress, run.config.max_samples
    before = None if earlier is None else earlier.max_samples
    if before is not None and progress.offset >= before:
        return limit is None or limit > progress.offset
    source = run.source
    return isinstance(source, Peekable) and source.replayable and bool(source.peek(1))
