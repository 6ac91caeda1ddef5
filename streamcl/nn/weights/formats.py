"""Reads a file of weights into named tensors, unwrapped from what trainers put around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from streamcl.errors import StreamclError, WeightsError
from streamcl.nn.weights.names import timm_names
from streamcl.nn.weights.onnx import read_onnx

_NESTINGS = ("state_dict", "model", "teacher", "model_ema", "module")
_PREFIXES = ("module.", "backbone.", "model.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .onnx file, by name, on the CPU.

    Nestings (state_dict, model, teacher) are opened and the prefixes `module.`, `backbone.` and `model.`
    taken off; the names of Hugging Face's ViT and DINOv2 become timm's. A pickle is read with
    weights_only, so no code in it runs. Raises WeightsError for a file that is absent, damaged or of
    another kind, MissingExtra for .onnx without the onnx package.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights", hint="see `weights` in the configuration")
    return timm_names(_bare(_tensors(path)))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".onnx":
            return read_onnx(path)
        if path.suffix in {".pth", ".pt", ".bin"}:
            return _opened(torch.load(path, map_location="cpu", weights_only=True))
    except StreamclError:
        raise
    except Exception as error:  # on damaged bytes torch's unpickler raises whatever it stumbles over
        raise WeightsError(f"{path}: unreadable: {error}") from error
    raise WeightsError(f"{path}: weights are .safetensors, .pth, .pt or .onnx, not {path.suffix!r}")


def _opened(content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of whatever the trainer wrapped them in."""
    while isinstance(content, Mapping):
        inner = next((key for key in _NESTINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = content[inner]
    return {}


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
