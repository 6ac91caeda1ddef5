"""The learner of a run: loaded from the newest checkpoint, and exported for PEFT and timm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError
from streamcl.events import HoldoutPart, Prediction, Sample
from streamcl.factory.backbone import BackboneFactory, build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.learners.predictions import to_ranking
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.nn.backbone import Backbone
from streamcl.nn.peft_export import export_adapter, export_merged
from streamcl.protocols import Learner, ProbabilisticLearner, State
from streamcl.runs.directory import checkpoints, config_of
from streamcl.sources.appending import appended
from streamcl.storage.manifest_mac import ManifestMac


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
    folder = Path(folder)
    config = config_of(folder)
    compute = build_compute(config)
    if fitted:
        compute = compute.for_requests()
    backbone = vit(config, compute)
    learner = build_learner(config, backbone, compute)
    learner.load_state_dict(_newest_state(folder, config, backbone)["learner"])
    return learner, config


@dataclass(frozen=True, slots=True)
class StreamState:
    """The part of a run's state that concerns its stream.

    held_out: samples that the run holds out; none where its source has held-out samples of its own.
    appended: records that were learned and do not come from the source.
    """

    held_out: tuple[HoldoutPart, ...]
    appended: int


def load_stream_state(folder: str | Path, *, vit: BackboneFactory = build_vit) -> StreamState:
    """Return what the newest good checkpoint of a run says of its stream.

    Raise CheckpointError where there is no checkpoint.
    """
    folder = Path(folder)
    config = config_of(folder)
    state = _newest_state(folder, config, vit(config, build_compute(config)))
    store = HoldoutStore(config.evaluate.hold_out)
    store.load_state_dict(state.get("held_out", {}))
    return StreamState(store.parts if len(store) else (), appended(state["source"]))


def _newest_state(folder: Path, config: RunConfig, backbone: Backbone) -> State:
    """Return the state in the newest good checkpoint. Raise CheckpointError where there is none."""
    mac = ManifestMac(accept_foreign=True)  # a copy of a run on another machine can be used as well
    found = checkpoints(config, folder, backbone=backbone.fingerprint, mac=mac).latest()
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    return found.state


def rank_classes(learner: Learner, samples: Sequence[Sample], top: int) -> list[tuple[Prediction, ...]]:
    """Return at most `top` classes of each sample, the likeliest first; the first is that of `predict`.

    A learner that computes no probability of every class gives one.
    """
    if samples and top > 1 and isinstance(learner, ProbabilisticLearner):
        return to_ranking(learner.logits(samples), learner.classes, top)
    return [(each,) for each in learner.predict(samples)]


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
