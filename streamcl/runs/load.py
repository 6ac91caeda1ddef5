"""What a run has learned: the learner of its newest checkpoint, and its export."""

from __future__ import annotations

from pathlib import Path

from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError
from streamcl.factory.backbone import BackboneFactory, build_vit
from streamcl.factory.compute import build_compute
from streamcl.factory.learner import build_learner
from streamcl.learners.mixed_privacy import MixedPrivacyLearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.nn.peft_export import export_adapter, export_merged
from streamcl.protocols import Learner
from streamcl.runs.directory import checkpoints, config_of


def load_learner(folder: str | Path, *, vit: BackboneFactory = build_vit) -> tuple[Learner, RunConfig]:
    """The learner of a run as its newest good checkpoint holds it, for predicting or exporting.

    vit: makes the backbone, or lends one.
    """
    folder = Path(folder)
    config = config_of(folder)
    compute = build_compute(config)
    backbone = vit(config, compute)
    learner = build_learner(config, backbone, compute)
    found = checkpoints(config, folder, backbone=backbone.fingerprint).latest()
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    learner.load_state_dict(found.state["learner"])
    return learner, config


def export_learner(learner: Learner, config: RunConfig, folder: Path) -> list[Path]:
    """Write adapters and head as PEFT does, and the merged backbone beside them; nothing without adapters."""
    if isinstance(learner, MixedPrivacyLearner):
        learner = learner.core  # what users have taught is not exported
    if isinstance(learner, OnlineLoRALearner):
        adapters, weight, bias = learner.adapters, learner.head.weight.detach(), learner.head.bias.detach()
        export_adapter(adapters, weight, bias, learner.classes, folder, config.backbone.name)
    elif isinstance(learner, RidgeLoRALearner) and learner.adapted is not None:
        adapters = learner.adapted.adapters  # its heads read several blocks, which no timm head does
        export_adapter(adapters, None, None, learner.classes, folder, config.backbone.name)
    else:
        return []
    export_merged(adapters, folder / "merged.safetensors")
    return [folder, folder / "merged.safetensors"]
