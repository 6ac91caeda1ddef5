"""Runs on disk: opening one anew or where it stopped, and carrying out what it was asked meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.distributed.agreement import check_agreement
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.factory.backbone import BackboneFactory, build_vit
from streamcl.runs.assemble import assemble
from streamcl.runs.directory import config_of, keep_config, move_aside, saved_config
from streamcl.runs.load import export_learner, load_learner
from streamcl.runs.resume import begin_or_restore, reopen, resume
from streamcl.runs.run import Run
from streamcl.runs.settings import agree_with_earlier, read_settings, settled_precision
from streamcl.storage import files
from streamcl.storage.lock import RunLock

__all__ = ["Run", "execute_pending", "export_learner", "load_learner", "open_run"]


def open_run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    fresh: bool = False,
    strict: bool = False,
    vit: BackboneFactory = build_vit,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """The run that a configuration describes: continued where its directory holds one, else begun.

    fresh: move an earlier run of the same name aside first. strict: a damaged checkpoint is an error rather
    than a reason to use the one before it. vit: makes the backbone, or lends one that several runs share.
    group: the processes that run it together (see `TorchProcessGroup`), each of which calls this.
    Raises RunBusy where another process holds the directory, ConfigError where the run in it was made with a
    configuration that this one cannot continue.
    """
    settings = read_settings(config)
    folder = Path(settings.run_dir or Path("runs") / settings.name)
    check_agreement(settings, group)
    if not group.is_main:
        return _follow(settings, folder, vit, group)
    if fresh:
        move_aside(folder)
    files.ensure_writable(folder)
    stack = ExitStack()
    try:
        stack.enter_context(RunLock(folder))
        files.sweep(folder)
        saved = saved_config(folder)
        settings = settled_precision(settings, saved)
        earlier = agree_with_earlier(settings, saved, folder)
        run, vault = assemble(settings, folder, stack, vit=vit, group=group)
        keep_config(settings, folder)
        resume(run, vault, strict=strict)
        reopen(run, earlier)
        group.broadcast_object(run.processor.progress.finished)
    except BaseException:
        stack.close()
        raise
    return run


def _follow(settings: RunConfig, folder: Path, vit: BackboneFactory, group: ProcessGroup) -> Run:
    """The run of a rank that does not lead: it goes where the first one goes, and touches no file."""
    stack = ExitStack()
    try:
        run, _ = assemble(settings, folder, stack, vit=vit, group=group)
        begin_or_restore(run, None)
        if not group.broadcast_object(False):
            run.processor.reopen()
    except BaseException:
        stack.close()
        raise
    return run


def execute_pending(folder: Path) -> None:
    """Carry out at once what is pending for a run that no process works on; batches are not processed.

    Raises RunBusy where one does (it carries them out itself), ConfigError where there is no run.
    """
    config = config_of(folder)
    with open_run(config.model_copy(update={"run_dir": str(folder)})) as run:
        run.processor.forget()
        if run.processor.progress.finished:
            run.finish()
