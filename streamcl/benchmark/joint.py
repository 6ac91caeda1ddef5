"""The joint upper bound: LoRA trained for several epochs on all images of a stream, then a ridge head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.benchmark.suite import JointOptions
from streamcl.config.options.run import RunConfig
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import BackboneFactory, build_compute
from streamcl.factory.source import build_source
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.adapter_model import AdapterModel
from streamcl.learners.baselines.finetune import FinetuneLearner, NaiveLoRAOptions, build_model
from streamcl.learners.block_features import (
    concat_block_tokens,
    concat_width,
    evenly_spaced_blocks,
    mean_over_views,
    tta_views,
)
from streamcl.learners.factory import LearnerContext
from streamcl.learners.ridge import RidgeLearner
from streamcl.protocols import Learner
from streamcl.runs.summary import environment
from streamcl.storage.rng_state import seed_generators


class AdaptedReader:
    """Reads concatenated tokens of adapted blocks, averaged over views; adapters must not change any more."""

    def __init__(self, model: AdapterModel, blocks: Sequence[int], views: int = 1) -> None:
        self._model, self._blocks, self._views = model, tuple(sorted(blocks)), views

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return features, float32 [B, F], of B samples."""
        backbone, adapters = self._model.backbone, self._model.adapters
        assert adapters is not None
        with torch.no_grad(), self._model.compute.autocast():
            views = tta_views(backbone.prepare([sample.image for sample in samples]), self._views)
            outputs = adapters.run(backbone.stem(torch.cat(views)))
            return mean_over_views(concat_block_tokens(backbone, outputs, self._blocks), len(views))


def joint_summary(
    config: RunConfig,
    joint: JointOptions,
    vit: BackboneFactory,
) -> dict[str, Any]:
    """Train on all samples of the configured stream and evaluate both heads at the end.

    An interrupted training starts over: it holds all images in memory and has no checkpoint. Return a summary
    like a run's: "holdout" is the ridge head's, "holdout_linear" the linear head's.
    """
    began = monotonic()
    seed_generators(config.seed)
    compute = build_compute(config)
    source = build_source(config)
    try:
        samples = [sample for event in source if isinstance(event, Batch) for sample in event.labelled]
    finally:
        source.close()
    options = NaiveLoRAOptions(rank=joint.rank, learning_rate=joint.learning_rate)
    model = build_model(options, LearnerContext(vit(config, compute), compute, config.seed))
    train(model, samples, joint.epochs, config.batch.largest)
    refitted = refit(model, samples, joint, config.batch.largest)
    examiner = HoldoutEvaluator(
        source.info.holdout, max_per_part=config.evaluate.max_per_part, batch_size=config.batch.largest
    )
    seconds = monotonic() - began
    return {
        "learner": "joint",
        "source": source.info.name,
        "finished": True,
        "samples": len(samples),
        "epochs": joint.epochs,
        "classes": len(model.classes),
        "holdout": _figures(examiner, refitted, len(samples)),
        "holdout_linear": _figures(examiner, FinetuneLearner(model), len(samples)),
        "timing": {
            **environment(compute),
            "seconds": seconds,
            "images_per_s": joint.epochs * len(samples) / seconds,
        },
    }


def train(model: AdapterModel, samples: Sequence[Sample], epochs: int, batch_size: int) -> None:
    """Train `epochs` passes over the samples, each in a new random order; the loss is over all classes."""
    model.grow(samples)
    for _ in range(epochs):
        order = torch.randperm(len(samples), generator=model.generator).tolist()
        for chunk in _chunks([samples[place] for place in order], batch_size):
            model.step(F.cross_entropy(model.head(model.features(chunk)), model.targets(chunk)))


def refit(model: AdapterModel, samples: Sequence[Sample], joint: JointOptions, batch_size: int) -> Learner:
    """Return a ridge head fitted on the adapted features of all samples."""
    depth = model.backbone.depth
    blocks = joint.blocks or evenly_spaced_blocks(depth)
    head = RidgeHead(
        concat_width(model.backbone, blocks),
        trace_ridge=joint.trace_ridge,
        refit_fraction=1.0,  # one solve at the end
        device=model.backbone.device,
    )
    learner = RidgeLearner(model.backbone, model.compute, head, blocks=blocks)
    learner.reader = AdaptedReader(model, blocks, joint.tta_views)
    for number, chunk in enumerate(_chunks(samples, batch_size)):
        learner.learn(Batch(number * batch_size, tuple(chunk)))
    head.exact_weights()
    return learner


def _figures(examiner: HoldoutEvaluator, learner: Learner, offset: int) -> dict[str, Any]:
    result, history = examiner.evaluate(learner), HoldoutHistory()
    finished, error = examiner.finished_parts(offset), result.calibration_error
    history.record(offset, result.parts, result.sizes, finished, result.accuracy, calibration_error=error)
    return history.summary()


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    for start in range(0, len(samples), size):
        yield list(samples[start : start + size])
