"""Reads files of weights, unwraps what trainers put around them, and checks that they fill a model."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from streamcl.errors import StreamclError, WeightsError
from streamcl.nn.weights.names import timm_names
from streamcl.nn.weights.onnx import read_onnx
from streamcl.storage import files

logger = logging.getLogger(__name__)

_NESTINGS = ("state_dict", "model", "teacher", "model_ema", "module")
_PREFIXES = ("module.", "backbone.", "model.")
_SHOWN = 8  # names in one message; a wrong file has hundreds
_OF_A_VIT = re.compile(r"(?:cls_token|reg_token|pos_embed|patch_embed|blocks|norm_pre|norm|fc_norm)(?:\.|$)")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt or .onnx file, by name, on the CPU.

    Nestings (state_dict, model, teacher) are opened and the prefixes `module.`, `backbone.` and `model.`
    removed; the names of Hugging Face's ViT and DINOv2 become timm's. A pickle is read with weights_only, so
    no code in it runs. Raise WeightsError for a file that is absent, damaged or of another kind, MissingExtra
    for .onnx without the onnx package.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights", hint="see `weights` in the configuration")
    state = _tensors(path)
    for prefix in _PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return timm_names(state)


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
    """Return the tensors of a checkpoint, out of the mappings that trainers put around them."""
    while isinstance(content, Mapping):
        inner = next((key for key in _NESTINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = content[inner]
    return {}


def convert_onnx(path: str | Path, target: str | Path) -> None:
    """Write the weights of the ViT in an ONNX export as safetensors under timm's names.

    Other parts of the graph (a decoder, a classifier) are left out. `target` is written atomically.
    """
    state = {key: value.contiguous() for key, value in read_weights(path).items() if _OF_A_VIT.match(key)}
    files.atomic_write(Path(target), save(state, metadata={"format": "pt"}))


def select_weights(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the part of `state` that fills `model`, both as state dicts of one naming.

    Log which parts are dropped (a classifier, blocks past the kept depth). Raise WeightsError
    where names are missing or shapes differ.
    """
    missing = [key for key in model if key not in state]
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of {len(model)} weights are missing: {_some(missing)}",
            hint="is it the file of this model, and not of another size or family?",
        )
    wrong = [key for key in model if state[key].shape != model[key].shape]
    if wrong:
        shapes = [f"{key} is {list(state[key].shape)}, not {list(model[key].shape)}" for key in wrong]
        raise WeightsError(f"{path}: weights of another shape: {_some(shapes)}")
    dropped = Counter(_part(key) for key in state if key not in model)
    if dropped:
        parts = [f"{part} ({count})" for part, count in sorted(dropped.items())]
        logger.info("%s: %d weights are not used: %s", path, dropped.total(), _some(parts))
    return {key: state[key] for key in model}


def _part(key: str) -> str:
    """Return the block of a weight, or the first part of its name, by which dropped weights are counted."""
    block = re.match(r"(?:layers\.\d+\.)?blocks\.\d+", key)
    return block.group() if block else key.partition(".")[0]


def refuse_other_patches(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> None:
    """Raise WeightsError for a state dict with patches of another size: resampled, it is another model."""
    key = "patch_embed.proj.weight"
    if key in state and state[key].ndim == 4 and state[key].shape != model[key].shape:
        raise WeightsError(f"{path}: {key} is {list(state[key].shape)}, not {list(model[key].shape)}")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
