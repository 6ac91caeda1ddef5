"""Builds a run from its configuration: source, backbone, learner, outputs, and the loop over them."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from streamcl.capabilities.declaration import state_for_predictions
from streamcl.config.compatibility import fingerprint
from streamcl.config.options.run import RunConfig
from streamcl.distributed.agreement import (
    ReplicatedCheckpointStore,
    ReplicatedLearner,
    check_equal_on_all_ranks,
)
from streamcl.distributed.process_group import ProcessGroup
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.factory.backbone import BackboneFactory, build_compute
from streamcl.factory.forgetting import build_forgetting, loop_forgetting
from streamcl.factory.parts import (
    build_fanout,
    build_held_out,
    build_learner,
    build_shift,
    build_waiting,
    detector_batch,
)
from streamcl.factory.source import SourceFactory, build_source
from streamcl.forgetting.erasure.purging import CheckpointPurger
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.lineage.feature_probe import FeatureProbe
from streamcl.learners.holdout_calibration import HoldoutCalibrator
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.nn.probe_features import probe_features
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import BatchObserver, LoopParts, LoopPolicy, StopSignal
from streamcl.protocols import CheckpointStore, Learner, Source
from streamcl.runs.checkpoint_replay import CheckpointReplay
from streamcl.runs.directory import checkpoints
from streamcl.runs.run import Run
from streamcl.runs.summary import environment, library_versions
from streamcl.runs.unlearned_prediction import unlearned_predictor
from streamcl.sinks.fanout import Fanout
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.key_folder import default_key_folder
from streamcl.storage.rng_state import capture_generators, seed_generators
from streamcl.storage.snapshots import PublishingStore, Snapshots
from streamcl.storage.thumbnails import Thumbnails

RECORDS_PER_SAMPLE = 10
"""Records between two evaluations for each sample that is held out of them, and that an evaluation predicts:
so it adds at most a tenth of the images, and less of the time."""


def assemble(
    settings: RunConfig,
    folder: Path,
    stack: ExitStack,
    *,
    vit: BackboneFactory,
    group: ProcessGroup,
    stream: SourceFactory = build_source,
    snapshots: Snapshots | None = None,
    observers: tuple[BatchObserver, ...] = (),
) -> Run:
    """Return the run at the beginning of its stream; `stack` closes what this opens."""
    seed_generators(settings.seed)
    stop = StopSignal()
    compute = build_compute(settings, group)
    source = stream(settings, group, stop.set, folder)
    stack.callback(source.close)
    _check_delivery(settings, source)
    backbone = vit(settings, compute)
    check_equal_on_all_ranks("backbone", backbone.fingerprint, group)
    learner = build_learner(settings, backbone, compute, group, folder)
    output = _open_output(settings, folder, stack, backbone.fingerprint, group)
    scores, history, throughput = Prequential(), HoldoutHistory(), Throughput()
    waiting = build_waiting(settings, group)
    replay = None
    if group.world_size == 1:  # several ranks would have to read and learn it together
        replay = CheckpointReplay(settings, source, learner, output.checkpoints, output.saver)
    held_out = build_held_out(settings, source.info, backbone.image_size, group)
    calibrator = HoldoutCalibrator(
        learner,
        source.info.holdout or held_out.parts,
        lambda: held_out.version,
        max_per_part=settings.evaluate.max_per_part,
    )
    forgetting = None
    if group.is_main:
        resources = RunResources(
            folder,
            learner,
            source,
            scores,
            history,
            output.sink,
            thumbnails=output.thumbnails,
            checkpoints=CheckpointPurger(output.checkpoints, output.saver) if settings.checkpoint else None,
            snapshots=snapshots,
            waiting=waiting,
            replay=replay,
            held_out=held_out,
            calibrator=calibrator,
            fingerprint=fingerprint(settings),
            probe=FeatureProbe.of(probe_features(backbone), library_versions()),
            signing_key=default_key_folder().key_in_use,
        )
        forgetting = build_forgetting(settings, resources, stack)
    store = _checkpoint_store(output, learner, group)
    if snapshots is not None:
        store = PublishingStore(store, snapshots, functools.partial(state_for_predictions, learner))
    in_loop = loop_forgetting(forgetting, (learner, scores, history, held_out), group)
    parts = LoopParts(
        detector=build_shift(settings),
        scores=scores,
        history=history,
        evaluator=_evaluator(settings, source, held_out, calibrator, group),
        meter=throughput,
        sink=output.sink,
        thumbnails=output.thumbnails,
        checkpoints=store if settings.checkpoint else None,
        forgetting=in_loop,
        request_intake=in_loop,
        relapse_tester=in_loop,
        waiting=waiting,
        corrections=None if forgetting is None else forgetting.corrections,
        held_out=held_out,
        stop=stop,
        is_hidden_part=in_loop.hides_part,
        calibrate=calibrator.fit,
        predict_only=unlearned_predictor(learner, settings) if group.world_size == 1 else None,
        agree=bool if group.world_size == 1 else group.broadcast_object,
        observers=observers,
    )
    policy = LoopPolicy(
        commit_every=settings.checkpoint.every_samples if settings.checkpoint else None,
        commit_seconds=settings.checkpoint.every_seconds if settings.checkpoint else None,
        flush_seconds=settings.flush,
        min_samples=detector_batch(settings),
        max_skipped=settings.max_skipped,
        max_quarantined=settings.source.policy.max_quarantined,
    )
    processor = StreamProcessor(
        source,
        learner if group.world_size == 1 else ReplicatedLearner(learner, group),
        parts,
        policy,
        environment=environment(compute, group.world_size),
        generators=source.rng_state if settings.source.class_ else capture_generators,
    )
    if replay is not None:
        replay.attach(processor)
    return Run(
        config=settings,
        folder=folder,
        compute=compute,
        source=source,
        learner=learner,
        processor=processor,
        throughput=throughput,
        forgetting=forgetting,
        checkpoints=output.checkpoints,
        saver=output.saver,
        group=group,
        stack=stack,
    )


@dataclass(frozen=True, slots=True)
class RunOutput:
    """The outputs of a run: its log, its thumbnails and its checkpoints, which `saver` writes in a thread."""

    sink: Fanout
    thumbnails: Thumbnails | None
    checkpoints: Checkpoints
    saver: BackgroundSaver


def _open_output(
    settings: RunConfig, folder: Path, stack: ExitStack, backbone: str, group: ProcessGroup
) -> RunOutput:
    """Open the files of a run; on ranks other than the first nothing is written."""
    sink = build_fanout(settings, folder) if group.is_main else Fanout({})
    stack.callback(sink.close)
    saved = checkpoints(settings, folder, backbone=backbone)
    saver = BackgroundSaver(saved)
    stack.callback(saver.close)
    samples = settings.report.samples if group.is_main else 0
    thumbnails = Thumbnails(folder / "samples", samples) if samples else None
    return RunOutput(sink, thumbnails, saved, saver)


def _checkpoint_store(output: RunOutput, learner: Learner, group: ProcessGroup) -> CheckpointStore:
    if group.world_size == 1:
        return output.saver
    return ReplicatedCheckpointStore(output.saver if group.is_main else None, learner, group)


def _evaluator(
    settings: RunConfig,
    source: Source,
    held_out: HoldoutStore,
    calibrator: HoldoutCalibrator,
    group: ProcessGroup,
) -> HoldoutEvaluator:
    plan = settings.evaluate
    return HoldoutEvaluator(
        source.info.holdout or held_out.parts,
        every_samples=plan.every_samples,
        at_part_end=plan.at_part_end,
        at_stream_end=plan.at_stream_end,
        max_per_part=plan.max_per_part,
        records_per_sample=0 if source.info.holdout else RECORDS_PER_SAMPLE,
        batch_size=settings.batch.largest,
        group=group if group.world_size > 1 else None,
        predict=calibrator.predict,
    )


def _check_delivery(settings: RunConfig, source: SourceWrapper) -> None:
    """Raise ConfigError where each record is to be learned once and the source cannot go back."""
    wanted = settings.checkpoint.delivery if settings.checkpoint else "best_effort"
    if wanted == "exactly_once" and source.guarantee.kind != "exactly_once":
        raise settings.refuse(
            "checkpoint.delivery",
            f"{source.info.name} delivers {source.guarantee}; a source of yours needs state_dict and "
            "load_state_dict, or __len__ and __getitem__, or source.deterministic: true where it gives the "
            "same records each time; a generator needs source.spool: {}; best_effort takes it as it is",
        )
