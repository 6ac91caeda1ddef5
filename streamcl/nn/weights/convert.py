"""Turns an ONNX export into a file of weights that needs no onnx package to be read."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save

from streamcl.nn.weights.formats import read_weights
from streamcl.storage import files

_OF_A_VIT = re.compile(r"(?:cls_token|reg_token|pos_embed|patch_embed|blocks|norm_pre|norm|fc_norm)(?:\.|$)")


def convert_onnx(path: str | Path, target: str | Path) -> None:
    """Write the weights of the ViT in an ONNX export as safetensors under timm's names.

    What else the graph holds (a decoder, a classifier) is left out. `target` appears whole or not at all.
    """
    state = {key: value.contiguous() for key, value in read_weights(path).items() if _OF_A_VIT.match(key)}
    files.atomic_write(Path(target), save(state, metadata={"format": "pt"}))
