"""Weights of a frozen model as pages of a file, which the processes of a machine share in memory."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from streamcl.nn.backbone import Backbone
from streamcl.storage import files


def map_weights(backbone: Backbone, folder: Path) -> None:
    """Replace the weights of a backbone on a CPU by those of a file with the same bytes, mapped into memory.

    The first process writes the file, named after the fingerprint; the system keeps one copy of its pages for
    all that map it. Outputs stay bit for bit.

    Args:
        backbone: frozen, on a CPU; on any other device nothing is done.
        folder: the file's, where one may be written.

    Raises:
        OSError: the file cannot be written or read.
    """
    if backbone.device.type != "cpu":
        return
    model = backbone.model
    path = folder / f"{backbone.fingerprint}.safetensors"
    if not path.exists():
        temporary = files.temporary_path(path)
        safetensors.torch.save_model(model, str(temporary))
        temporary.replace(path)
    mapped = safetensors.torch.load_file(path)
    model.load_state_dict(model.state_dict() | mapped, assign=True)
    model.requires_grad_(False)
