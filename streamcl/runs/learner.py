"""The learner of a run: loaded from the newest checkpoint, and exported for PEFT and timm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from pathlib import Path

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError
from streamcl.events import HoldoutPart, Prediction, Sample
from streamcl.factory.backbone import BackboneFactory, build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.learners.predictions import to_predictions, to_ranking
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.nn.backbone import Backbone
from streamcl.nn.peft_export import export_adapter, export_merged
from streamcl.protocols import Learner, ProbabilisticLearner, State
from streamcl.runs.directory import checkpoints, config_of
from streamcl.sources.appending import appended
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.manifest_mac import ManifestMac

ASSESSED_AT_ONCE = 64
"""Held-out samples that go through the backbone together."""


def load_learner(
    folder: str | Path, *, vit: BackboneFactory = build_vit, fitted: bool = False
) -> tuple[Learner, RunConfig]:
    """Return a run's learner as its newest good checkpoint holds it, to predict or export, and its options.

    Args:
        folder: the run's directory.
        vit: makes the backbone, or lends one.
        fitted: answer a request at the cost of its own images, not of a whole batch. Features may then differ
            in their last bits from those of the run, so such a learner is not to learn, erase or be audited.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    loaded = load_run(folder, vit=vit, fitted=fitted)
    return loaded.learner, loaded.config


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run as its newest good checkpoint holds it.

    learner: with that checkpoint's state, on `backbone`. checkpoints: all that are kept. state: the whole of
    the newest one.
    """

    config: RunConfig
    backbone: Backbone
    learner: Learner
    checkpoints: Checkpoints
    state: State

    @cached_property
    def held_out(self) -> tuple[HoldoutPart, ...]:
        """The samples that the run holds out; none where its source has held-out samples of its own."""
        store = HoldoutStore(self.config.evaluate.hold_out)
        store.load_state_dict(self.state.get("held_out", {}))
        return store.parts if len(store) else ()

    @property
    def held_out_samples(self) -> list[Sample]:
        """The samples of `held_out`, of all its parts."""
        return [sample for part in self.held_out for sample in part.samples]

    @property
    def appended(self) -> int:
        """The number of records that were learned and do not come from the source."""
        return appended(self.state["source"])


def load_run(folder: str | Path, *, vit: BackboneFactory = build_vit, fitted: bool = False) -> LoadedRun:
    """Return a run as its newest good checkpoint holds it. See `load_learner`.

    Raise CheckpointError where there is no checkpoint.
    """
    folder = Path(folder)
    config = config_of(folder)
    compute = build_compute(config)
    if fitted:
        compute = compute.for_requests()
    backbone = vit(config, compute)
    learner = build_learner(config, backbone, compute)
    mac = ManifestMac(accept_foreign=True)  # a copy of a run on another machine can be used as well
    kept = checkpoints(config, folder, backbone=backbone.fingerprint, mac=mac)
    if (found := kept.latest()) is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    learner.load_state_dict(found.state["learner"])
    return LoadedRun(config, backbone, learner, kept, found.state)


def rank_classes(learner: Learner, samples: Sequence[Sample], top: int) -> list[tuple[Prediction, ...]]:
    """Return at most `top` classes of each sample, the likeliest first; the first is that of `predict`.

    A learner that computes no probability of every class gives one.
    """
    if samples and top > 1 and isinstance(learner, ProbabilisticLearner):
        return to_ranking(learner.logits(samples), learner.classes, top)
    return [(each,) for each in learner.predict(samples)]


@dataclass(frozen=True, slots=True)
class AssessedPrediction:
    """The likeliest classes of a sample, the likeliest first; none where none can be predicted.

    stability: the probability that an equally good model, learned from other samples of the stream, names
    the same class. novelty: how far the sample is from those learned; 1 as a new sample of the stream is on
    average. Both None where the learner cannot compute them. is_unknown: it is further from what was learned
    than a limit that was given (see `unsupported_limit`).
    """

    ranked: tuple[Prediction, ...]
    stability: float | None = None
    novelty: float | None = None
    is_unknown: bool = False

    @property
    def confidence(self) -> float:
        """The probability of the likeliest class; 0 without one."""
        return self.ranked[0].confidence if self.ranked else 0.0


def assess_predictions(
    learner: Learner, samples: Sequence[Sample], top: int, limit: float = math.inf
) -> list[AssessedPrediction]:
    """Return the classes of `rank_classes` with stability and novelty, in one reading of the samples.

    limit: of `AssessedScores.unsupported`, above which a sample is unknown.
    """
    assessment = capabilities_of(learner).assessment
    if assessment is None or not samples:
        return [AssessedPrediction(ranked) for ranked in rank_classes(learner, samples, top)]
    found = assessment.assess(samples)
    if top > 1:
        ranked = to_ranking(found.logits, learner.classes, top)
    else:
        ranked = [(each,) for each in to_predictions(found.logits, learner.classes)]
    stable, unknown = (1 - found.flips).tolist(), (found.unsupported > limit).tolist()
    rows = zip(ranked, map(_finite, stable), map(_finite, found.novelty.tolist()), unknown, strict=True)
    return list(starmap(AssessedPrediction, rows))


def unsupported_limit(run: LoadedRun, share: float) -> float | None:
    """Return the limit below which the given share of the held-out samples lies; None without one.

    It depends on the learner and the held-out samples that are left, so after an erasure it is the one of
    a run without the erased samples. There is none where the learner has no `assessment`, or fewer than
    1 / (1 - share) samples of classes that it knows are held out.
    """
    assessment = capabilities_of(run.learner).assessment
    samples = [each for each in run.held_out_samples if each.label in run.learner.classes]
    if assessment is None or len(samples) * (1 - share) < 1:
        return None
    chunks = [samples[start : start + ASSESSED_AT_ONCE] for start in range(0, len(samples), ASSESSED_AT_ONCE)]
    values: list[float] = [x for each in chunks for x in assessment.assess(each).unsupported.tolist()]
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def export_learner(learner: Learner, config: RunConfig, folder: Path) -> list[Path]:
    """Write adapters and head in the layout of PEFT, and the merged backbone beside them.

    Return the paths written: none where the learner has no adapters to export.
    """
    if (export := capabilities_of(learner).adapter_export) is None:
        return []
    adapters, head, classes = export
    weight, bias = (None, None) if head is None else (head.weight.detach(), head.bias.detach())
    export_adapter(adapters, weight, bias, classes, folder, config.backbone.name)
    merged = folder / "merged.safetensors"
    export_merged(adapters, merged)
    return [folder, merged]
