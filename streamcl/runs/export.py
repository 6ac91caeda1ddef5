"""Writes the adapters of a learner as PEFT does, and the backbone with the adapters merged."""

from __future__ import annotations

from pathlib import Path

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.run import RunConfig
from streamcl.nn.peft_export import export_adapter, export_merged
from streamcl.protocols import Learner


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
