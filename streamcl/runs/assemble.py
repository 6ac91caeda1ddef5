"""Puts a run together: source, learner and detector, what watches them, and the loop over all."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from streamcl.config.compatibility import fingerprint
from streamcl.config.options.run import RunConfig
from streamcl.distributed.agreement import ReplicatedCheckpointStore, ReplicatedLearner, check_same_everywhere
from streamcl.distributed.process_group import ProcessGroup
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput, memory_mb
from streamcl.factory.backbone import BackboneFactory
from streamcl.factory.compute import build_compute
from streamcl.factory.forgetting import build_forgetter, for_the_loop
from streamcl.factory.learner import build_learner
from streamcl.factory.shift import build_shift
from streamcl.factory.sinks import build_fanout
from streamcl.factory.source import MakeSource, build_source
from streamcl.forgetting.checkpoint_purge import CheckpointPurger
from streamcl.forgetting.run_resources import RunResources
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy, RunMetrics
from streamcl.protocols import Source
from streamcl.runs.directory import checkpoints
from streamcl.runs.run import Run
from streamcl.runs.summary import environment
from streamcl.sinks.fanout import Fanout
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.rng_state import capture_generators, seed_generators
from streamcl.storage.thumbnails import Thumbnails


def assemble(
    settings: RunConfig,
    folder: Path,
    stack: ExitStack,
    *,
    vit: BackboneFactory,
    group: ProcessGroup,
    stream: MakeSource = build_source,
) -> tuple[Run, Checkpoints]:
    """The run, knowing nothing yet, and the checkpoints in its folder; `stack` closes what it has opened."""
    seed_generators(settings.seed)
    compute = build_compute(settings, group)
    source = stream(settings, group, lambda: processor.stop())  # noqa: PLW0108 - made below
    stack.callback(source.close)
    _check_delivery(settings, source)
    backbone = vit(settings, compute)
    check_same_everywhere("backbone", backbone.fingerprint, group)
    learner = build_learner(settings, backbone, compute, group)
    sink = build_fanout(settings, folder) if group.is_main else Fanout({})
    stack.callback(sink.close)
    vault = checkpoints(settings, folder, backbone=backbone.fingerprint)
    saver = BackgroundSaver(vault)
    stack.callback(saver.close)
    scores, history, throughput = Prequential(), HoldoutHistory(), Throughput()
    keeping, several = settings.checkpoint, group.world_size > 1
    shown = settings.report.samples if group.is_main else 0
    gallery = Thumbnails(folder / "samples", shown) if shown else None
    sealing = CheckpointPurger(vault, saver) if keeping else None
    belongings = RunResources(
        folder, learner, source, scores, sink, gallery, sealing, fingerprint=fingerprint(settings)
    )
    forgetter = build_forgetter(settings, belongings, stack) if group.is_main else None
    keeper = ReplicatedCheckpointStore(saver if group.is_main else None, learner, group) if several else saver
    parts = LoopParts(
        detector=build_shift(settings),
        scores=scores,
        history=history,
        evaluator=_evaluator(settings, source, group),
        meter=ThroughputMeter(throughput),
        sink=sink,
        thumbnails=gallery,
        checkpoints=keeper if keeping else None,
        forgetting=for_the_loop(forgetter, learner, scores, group),
    )
    processor = StreamProcessor(
        source,
        ReplicatedLearner(learner, group) if several else learner,
        parts,
        _policy(settings),
        environment=environment(compute, group.world_size),
        generators=source.rng_state if settings.source.class_ else capture_generators,
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
        group,
        stack,
        source.interrupt,
    )
    return run, vault


def _policy(settings: RunConfig) -> LoopPolicy:
    return LoopPolicy(
        commit_every=settings.checkpoint.every_samples if settings.checkpoint else None,
        min_samples=getattr(settings.shift, "min_samples", 1),
        max_skipped=settings.max_skipped,
        max_quarantined=settings.source.policy.max_quarantined,
    )


def _evaluator(settings: RunConfig, source: Source, group: ProcessGroup) -> HoldoutEvaluator:
    plan = settings.evaluate
    return HoldoutEvaluator(
        source.info.holdout,
        every_samples=plan.every_samples,
        at_part_end=plan.at_part_end,
        at_stream_end=plan.at_stream_end,
        max_per_part=plan.max_per_part,
        batch_size=settings.batch_size,
        group=group if group.world_size > 1 else None,
    )


def _check_delivery(settings: RunConfig, source: Source) -> None:
    """Refuse a run that is to learn each record once, whatever happens, of a source that cannot go back."""
    wanted = settings.checkpoint.delivery if settings.checkpoint else "best_effort"
    if wanted == "exactly_once" and not source.replayable:
        raise settings.refuse(
            "checkpoint.delivery",
            f"{source.info.name} cannot be replayed, so no crash could be made good; give it state_dict and "
            "load_state_dict, or __len__ and __getitem__, or say source.deterministic: true where it gives "
            "the same records each time; best_effort runs it once",
        )


class ThroughputMeter:
    """Measures speed, time and memory for the metrics."""

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self.state_dict = throughput.state_dict
        self.load_state_dict = throughput.load_state_dict

    def read(self, images: int) -> RunMetrics:
        """Measure once `images` have passed."""
        self._throughput.update(images - self._throughput.images)
        return RunMetrics(self._throughput.images_per_s, self._throughput.seconds, memory_mb())
