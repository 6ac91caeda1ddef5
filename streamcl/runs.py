"""Runs on disk: opening one anew or where it stopped, finishing it, and using what it has learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from streamcl import files
from streamcl.audit.held_out import HeldOut
from streamcl.audit.relapse import Relapse
from streamcl.audit.utility import Utility
from streamcl.backbone import Backbone
from streamcl.build import build_compute, build_learner, build_source, build_vit
from streamcl.checkpoint import BackgroundSaver, Checkpoints, list_checkpoints
from streamcl.composition.forgetting import build_methods, build_schedule
from streamcl.composition.shift import build_shift
from streamcl.composition.sinks import build_fanout
from streamcl.compute import Compute
from streamcl.config import RunConfig, config_from_dict, differences, dump_config, fingerprint, load_config
from streamcl.errors import CheckpointError, ConfigError, ForgettingError
from streamcl.evaluation import Examiner
from streamcl.events import Prediction
from streamcl.forgetting.by_first import FirstForgetter, FollowingForgetter
from streamcl.forgetting.forgetter import Belongings, Forgetter
from streamcl.forgetting.kept import STATISTICS, Kept
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.protocol import Telling
from streamcl.forgetting.sealing import Sealing
from streamcl.gallery import Gallery
from streamcl.learners.hybrid import HybridLearner
from streamcl.learners.mixed import MixedLearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.ledger import LEDGER, Ledger
from streamcl.metrics import HoldoutHistory, Prequential, Throughput, memory_mb
from streamcl.peft_export import export_adapter, export_merged
from streamcl.processor import Forgetting, Pace, StreamProcessor
from streamcl.protocols import Learner, Source, State
from streamcl.randomness import capture_generators, seed_generators
from streamcl.ranks import ALONE, Ranks
from streamcl.report import write_report
from streamcl.run_lock import RunLock
from streamcl.several import SharedVault, Unanimous, agree_on, same_everywhere
from streamcl.sinks import Fanout
from streamcl.summary import environment, summarise, timing

Tell = Callable[[str], None]
CONFIG, CHECKPOINTS, LOG = "config.yaml", "checkpoints", "predictions.jsonl"


@dataclass(slots=True)
class Run:
    """A run with its directory. Iterate it to run it: one Prediction per sample, made before it is learned.

    Use it as a context manager: leaving it lets go of the directory's lock and of the files. On several
    ranks each has one; the first has the directory, and its `forgetter` is the only one.
    """

    config: RunConfig
    folder: Path
    compute: Compute
    backbone: Backbone
    source: Source
    learner: Learner
    processor: StreamProcessor
    scores: Prequential
    history: HoldoutHistory
    throughput: Throughput
    forgetter: Forgetter | None
    ranks: Ranks
    _stack: ExitStack
    _interrupt: Callable[[], None]

    def __iter__(self) -> Iterator[Prediction]:
        return self.processor.run()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Ask the run to end after the event in hand, with a commit. Safe to call from a signal handler.

        On several ranks all of them end before the next event, whichever was asked.
        """
        if self.ranks.world == 1:
            self.processor.stop()
        self._interrupt()

    def close(self) -> None:
        """Wait for the checkpoint being written and let go of the directory."""
        self._stack.close()

    @property
    def length(self) -> int | None:
        """Records in the stream, where that is known."""
        return self.source.info.length

    def figures(self) -> str:
        """Where the run stands, in a few words."""
        speed, accuracy = self.throughput.images_per_s, self.scores.window_accuracy
        parts = [
            f"{speed:.0f} images/s" if speed else "",
            f"accuracy {accuracy:.1%}" if accuracy is not None else "",
            f"segment {self.processor.progress.segment + 1}",
        ]
        return "  ".join(part for part in parts if part)

    def summary(self) -> dict[str, Any]:
        """The figures so far, as in summary.json."""
        return summarise(
            name=self.config.name,
            learner=self.config.learner.name,
            info=self.source.info,
            progress=self.processor.progress,
            classes=self.learner.classes,
            scores=self.scores,
            history=self.history,
            batch_size=self.config.batch_size,
            timing=timing(self.throughput, self.compute, self.ranks.world),
        )

    def forget(self, **what: Any) -> str:
        """Take in a request to forget; it is durable on return, and carried out before the next batch.

        what: as for `streamcl.forgetting.orders.order`: `label` (a class), `subject`, `ids`, `id_pattern`,
        `domain`, `offsets`, `samples`, `guarantee`, `method`, `relearn`, `deadline`, `key`, `id`. Returns the
        request's id, which is its receipt's name. Raises ForgettingError where the request makes no sense.
        """
        return self._asked.ask(**what)

    def forget_again(self, name: str) -> str:
        """Let a request that has failed be carried out before the next batch, named by its id or its key.

        Raises ForgettingError where there is no such request, or where it is over: done, or refused.
        """
        return self._asked.ask_again(name)

    @property
    def _asked(self) -> Forgetter:
        if self.forgetter is None:
            raise ForgettingError(f"rank {self.ranks.rank} keeps no ledger", hint="ask the first rank")
        return self.forgetter

    def finish(self) -> dict[str, Any]:
        """Write summary.json, adapter/ and report.html; returns the summary."""
        summary = self.summary()
        files.atomic_write(self.folder / "summary.json", json.dumps(summary, indent=2).encode())
        export_learner(self.learner, self.config, self.folder / "adapter")
        write_report(self.folder)
        return summary


def open_run(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    fresh: bool = False,
    strict: bool = False,
    report: Tell = print,
    vit: Callable[[RunConfig, Compute, Tell], Backbone] = build_vit,
    ranks: Ranks = ALONE,
) -> Run:
    """The run that a configuration describes: continued where its directory holds one, else begun.

    fresh: move an earlier run of the same name aside first. strict: a damaged checkpoint is an error rather
    than a reason to use the one before it. vit: makes the backbone, or lends one that several runs share.
    ranks: the processes that run it together (`streamcl.ranks.TorchRanks`), each of which calls this.
    Raises RunBusy where another process holds the directory, ConfigError where the run in it was made with a
    configuration that this one cannot continue.
    """
    settings = _settings(config)
    folder = Path(settings.run_dir or Path("runs") / settings.name)
    agree_on(settings, ranks)
    if not ranks.leads:
        return _follow(settings, folder, vit, ranks)
    if fresh:
        _move_aside(folder, report)
    files.ensure_writable(folder)
    stack = ExitStack()
    try:
        stack.enter_context(RunLock(folder))
        files.sweep(folder)
        saved = _saved_config(folder)
        settings = _settled_precision(settings, saved)
        earlier = _agree_with_earlier(settings, saved, folder, report)
        run, vault = _assemble(settings, folder, stack, report=report, vit=vit, ranks=ranks)
        _keep_config(settings, folder)
        _resume(run, vault, strict=strict, report=report)
        _reopen(run, earlier)
        ranks.from_first(run.processor.progress.finished)
    except BaseException:
        stack.close()
        raise
    return run


def _follow(
    settings: RunConfig, folder: Path, vit: Callable[[RunConfig, Compute, Tell], Backbone], ranks: Ranks
) -> Run:
    """The run of a rank that does not lead: it goes where the first one goes, and touches no file."""
    stack = ExitStack()
    try:
        run, _ = _assemble(settings, folder, stack, report=_say_nothing, vit=vit, ranks=ranks)
        _begin_or_restore(run, None)
        run.processor.progress.finished = ranks.from_first(False)
    except BaseException:
        stack.close()
        raise
    return run


def _say_nothing(message: str) -> None:
    """The first rank says it."""


def carry_out(folder: Path, *, report: Tell = print) -> None:
    """Carry out at once what is pending for a run that no process works on; batches are not processed.

    Raises RunBusy where one does (it carries them out itself), ConfigError where there is no run.
    """
    config = _saved_config(folder)
    if config is None:
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it")
    with open_run(config.model_copy(update={"run_dir": str(folder)}), report=report) as run:
        run.processor.forget()
        if run.processor.progress.finished:
            run.finish()


def load_learner(folder: str | Path, *, report: Tell = print) -> tuple[Learner, RunConfig]:
    """The learner of a run as its newest good checkpoint holds it, for predicting or exporting."""
    folder = Path(folder)
    config = _saved_config(folder)
    if config is None:
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it")
    compute = build_compute(config)
    backbone = build_vit(config, compute, report)
    learner = build_learner(config, backbone, compute)
    found = _checkpoints(config, folder, backbone).latest(report=report)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    learner.load_state_dict(found.state["learner"])
    return learner, config


def export_learner(learner: Learner, config: RunConfig, folder: Path) -> list[Path]:
    """Write adapters and head as PEFT does, and the merged backbone beside them; nothing without adapters."""
    if isinstance(learner, MixedLearner):
        learner = learner.core  # what users have taught is not exported
    if isinstance(learner, OnlineLoRALearner):
        adapters, weight, bias = learner.adapters, learner.head.weight.detach(), learner.head.bias.detach()
        export_adapter(adapters, weight, bias, learner.classes, folder, config.backbone.name)
    elif isinstance(learner, HybridLearner) and learner.adapted is not None:
        adapters = learner.adapted.adapters  # its heads read several blocks, which no timm head does
        export_adapter(adapters, None, None, learner.classes, folder, config.backbone.name)
    else:
        return []
    export_merged(adapters, folder / "merged.safetensors")
    return [folder, folder / "merged.safetensors"]


def _settings(config: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    return load_config(config) if isinstance(config, str | Path) else config_from_dict(config)


def _move_aside(folder: Path, report: Tell) -> None:
    if not folder.exists():
        return
    with RunLock(folder):
        taken = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
        aside = next(path for path in taken if not path.exists())
        folder.rename(aside)
    report(f"the earlier run in {folder} is now in {aside}")


def _saved_config(folder: Path) -> RunConfig | None:
    path = folder / CONFIG
    return load_config(path) if path.exists() else None


def _agree_with_earlier(
    settings: RunConfig, earlier: RunConfig | None, folder: Path, report: Tell
) -> RunConfig | None:
    """Refuse a changed configuration that the saved state does not fit; say aloud what else has changed.

    earlier: what the directory holds. Returns it where anything was learned under it.
    """
    settings = settings.model_copy(update={"forget": []})  # names what is to be forgotten: not kept here
    if earlier is None or not (list_checkpoints(folder / CHECKPOINTS) or (folder / LOG).exists()):
        return None  # nothing was learned under it
    changed = differences(earlier, settings)
    for difference in changed:
        if difference.severity != "refuse":
            report(f"changed since the run began: {difference}")
    refused = tuple(str(each) for each in changed if each.severity == "refuse")
    if refused:
        raise ConfigError(
            f"the run in {folder} cannot go on with this configuration",
            hint="take the changes back, choose another run_dir, or start over with --fresh",
            problems=(f"the run in {folder} cannot go on with this configuration:", *refused),
        )
    return earlier


def _settled_precision(settings: RunConfig, earlier: RunConfig | None) -> RunConfig:
    """With the precision that `auto` came to when the run began: the start-up timing could turn out otherwise
    now, and what is learned from here on would not be what an uninterrupted run learns."""
    if settings.precision != "auto":
        return settings
    begun = earlier.precision if earlier is not None else "auto"
    chosen = build_compute(settings).precision if begun == "auto" else begun
    return settings.model_copy(update={"precision": chosen})


def _keep_config(settings: RunConfig, folder: Path) -> None:
    """Save the effective configuration, less the requests: they name what is to be forgotten."""
    plain = settings.model_copy(update={"forget": []})
    files.atomic_write(folder / CONFIG, dump_config(plain).encode())


def _assemble(
    settings: RunConfig,
    folder: Path,
    stack: ExitStack,
    *,
    report: Tell,
    vit: Callable[[RunConfig, Compute, Tell], Backbone],
    ranks: Ranks,
) -> tuple[Run, Checkpoints]:
    seed_generators(settings.seed)
    compute = build_compute(settings, ranks)
    source = build_source(settings, ranks, lambda: processor.stop())  # noqa: PLW0108 - made below
    stack.callback(source.close)
    _check_guarantee(settings, source)
    backbone = vit(settings, compute, report)
    same_everywhere("backbone", backbone.fingerprint, ranks)
    learner = build_learner(settings, backbone, compute, ranks)
    sink = build_fanout(settings, folder) if ranks.leads else Fanout({})
    stack.callback(sink.close)
    vault = _checkpoints(settings, folder, backbone)
    saver = BackgroundSaver(vault)
    stack.callback(saver.close)
    scores, history, throughput = Prequential(), HoldoutHistory(), Throughput()
    plan, keeping = settings.evaluate, settings.checkpoint
    shown = settings.report.samples if ranks.leads else 0
    gallery = Gallery(folder / "samples", shown) if shown else None
    sealing = Sealing(vault, saver) if keeping else None
    belongings = Belongings(
        folder, learner, source, scores, gallery, sealing, fingerprint=fingerprint(settings)
    )
    forgetter = _forgetter(settings, belongings, stack) if ranks.leads else None
    several = ranks.world > 1
    keeper = SharedVault(saver if ranks.leads else None, learner, ranks, report) if several else saver
    processor = StreamProcessor(
        source,
        Unanimous(learner, ranks) if several else learner,
        build_shift(settings),
        scores=scores,
        history=history,
        examiner=Examiner(
            source.info.holdout,
            every=plan.every,
            at_parts=plan.at_parts,
            final=plan.final,
            limit=plan.max_per_part,
            batch_size=settings.batch_size,
            company=ranks if several else None,
        ),
        pace=Clock(throughput),
        sink=sink,
        gallery=gallery,
        vault=keeper if keeping else None,
        forgetter=_forgetting(forgetter, learner, scores, ranks),
        commit_every=keeping.every if keeping else None,
        gather=getattr(settings.shift, "gather", 1),
        max_skipped=settings.max_skipped,
        max_quarantined=settings.source.policy.max_quarantined,
        environment=environment(compute, ranks.world),
        generators=source.noted if settings.source.class_ else capture_generators,
    )
    run = Run(
        settings,
        folder,
        compute,
        backbone,
        source,
        learner,
        processor,
        scores,
        history,
        throughput,
        forgetter,
        ranks,
        stack,
        source.interrupt,
    )
    return run, vault


def _check_guarantee(settings: RunConfig, source: Source) -> None:
    """Refuse a run that is to learn each record once, whatever happens, of a source that cannot go back."""
    wanted = settings.checkpoint.guarantee if settings.checkpoint else "best_effort"
    if wanted == "exactly_once" and not source.replayable:
        raise settings.refuse(
            "checkpoint.guarantee",
            f"{source.info.name} cannot be replayed, so no crash could be made good; give it state_dict and "
            "load_state_dict, or __len__ and __getitem__, or say source.deterministic: true where it gives "
            "the same records each time; best_effort runs it once",
        )


def _forgetter(settings: RunConfig, belongings: Belongings, stack: ExitStack) -> Forgetter:
    ledger = Ledger(belongings.folder / LEDGER)
    stack.callback(ledger.close)
    lineage = Lineage(belongings.folder / LINEAGE)
    stack.callback(lineage.close)
    parts = belongings.source.info.holdout
    belongings.gauge = Utility(parts)
    if settings.on_relapse != "ignore":
        held_out = HeldOut(parts)
        belongings.monitor = Relapse(ledger.erased_by, held_out, settings.on_relapse)
    belongings.kept = _kept(settings, belongings, lineage, stack)
    return Forgetter(belongings, ledger, lineage, build_methods(), schedule=build_schedule(settings))


def _kept(settings: RunConfig, belongings: Belongings, lineage: Lineage, stack: ExitStack) -> Kept | None:
    """The statistics by class or subject, told of all that the learner adds; None where not asked for."""
    learner = belongings.learner
    if settings.statistics is None or not isinstance(learner, Telling):
        return None
    kept = Kept(
        belongings.folder / STATISTICS,
        "class" if settings.statistics == "per_class" else "subject",
        digest=lineage.digest,
        keep=settings.checkpoint.keep if settings.checkpoint else 0,
    )
    stack.callback(kept.close)
    learner.listen(kept.take)
    return kept


def _forgetting(
    forgetter: Forgetter | None, learner: Learner, scores: Prequential, ranks: Ranks
) -> Forgetting:
    """What the loop asks: the forgetter itself, or on several ranks one that goes by the first rank's."""
    if forgetter is None:
        return FollowingForgetter(learner, scores, ranks)
    return forgetter if ranks.world == 1 else FirstForgetter(forgetter, learner, scores, ranks)


def _resume(run: Run, vault: Checkpoints, *, strict: bool, report: Tell) -> None:
    """Go on from the newest good checkpoint; without one, make the first, at offset 0."""
    vault.sweep()
    found = vault.latest(report=report, strict=strict)
    replayable = run.source.replayable
    if not replayable and found is None:
        report(
            "the source cannot be replayed: if this run is interrupted, it cannot go on where it stopped "
            "(checkpoint.guarantee: exactly_once would refuse it)"
        )
    if found is None:
        _refuse_old_logs(run.folder, resumable=run.config.checkpoint is not None)
        _begin_or_restore(run, None)
        return
    finished = found.state["progress"]["finished"]
    if not replayable and not finished:
        raise CheckpointError(
            f"the run in {run.folder} stopped at offset {found.offset}; its source cannot go back there",
            hint="start over with --fresh, or give the source a state_dict and load_state_dict",
        )
    state = found.state if replayable else {**found.state, "source": run.source.state_dict()}
    if (before := state.get("ranks", 1)) != run.ranks.world:
        report(f"{before} ranks came so far, {run.ranks.world} go on; sums may differ in their last bits")
    if not finished:
        report(f"going on from offset {found.offset} (step {found.step})")
    _begin_or_restore(run, state)


def _begin_or_restore(run: Run, found: State | None) -> None:
    """Go where the first rank goes: on from the state that it found, or to the beginning."""
    state = run.ranks.from_first(found)
    if state is None:
        run.processor.begin()
        return
    run.processor.restore(state)
    if run.processor.progress.finished and run.source.replayable:
        run.processor.forget()  # no batch will come before which it could be done


def _reopen(run: Run, earlier: RunConfig | None) -> None:
    """A run that ended at its limit goes on under a higher one."""
    progress, limit = run.processor.progress, run.config.limit
    ended_there = earlier is not None and earlier.limit is not None and progress.offset >= earlier.limit
    if progress.finished and ended_there and (limit is None or limit > progress.offset):
        progress.finished = False


def _refuse_old_logs(folder: Path, *, resumable: bool) -> None:
    """Logs without a checkpoint are an interrupted start, or the whole of a run that keeps none."""
    if not resumable and (folder / LOG).exists():
        raise ConfigError(
            f"{folder} holds the records of an earlier run that kept no checkpoint",
            hint="--fresh moves it aside; or choose another run_dir",
        )


def _checkpoints(settings: RunConfig, folder: Path, backbone: Backbone) -> Checkpoints:
    keep = settings.checkpoint.keep if settings.checkpoint else 1
    prints = {"backbone": backbone.fingerprint, "config": fingerprint(settings)}
    return Checkpoints(folder / CHECKPOINTS, keep=keep, fingerprint=prints)


class Clock:
    """Reads speed, time and memory for the metrics."""

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self.state_dict = throughput.state_dict
        self.load_state_dict = throughput.load_state_dict

    def read(self, images: int) -> Pace:
        """The figures once `images` have passed."""
        self._throughput.update(images - self._throughput.images)
        return Pace(self._throughput.images_per_s, self._throughput.seconds, memory_mb())
