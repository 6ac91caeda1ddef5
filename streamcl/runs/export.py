"""Writes the adapters of a learner as PEFT does, and the backbone with the adapters merged."""

from __future__ import annotations

from pathlib import Path

from streamcl.config.options.run import RunConfig
from streamcl.learners.mixed_privacy import MixedPrivacyLearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.nn.peft_export import export_adapter, export_merged
from streamcl.protocols import Learner


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
