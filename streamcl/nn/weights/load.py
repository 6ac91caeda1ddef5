"""Reads files of weights, unwraps what trainers put around them, and checks that they fill a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from streamcl.errors import StreamclError, WeightsError
from streamcl.nn.weights.checkpoint import load_checkpoint, without_prefixes
from streamcl.nn.weights.names import timm_names
from streamcl.nn.weights.onnx import read_onnx
from streamcl.storage import files

logger = logging.getLogger(__name__)

_SHOWN = 8  # names in one message; a wrong file has hundreds
_OF_A_VIT = re.compile(r"(?:cls_token|reg_token|pos_embed|patch_embed|blocks|norm_pre|norm|fc_norm)(?:\.|$)")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt or .onnx file, by name, on the CPU.

    The mappings that trainers put around them (state_dict, model, teacher) are opened, and the prefixes of
    wrappers (`module.`, `model.`, `_orig_mod.`) removed; the names of Hugging Face's ViT and DINOv2 become
    timm's. Of a pickle only tensors and plain data are read, so no code in it runs. Raise WeightsError for a
    file that is absent, damaged or of another kind, MissingExtra for .onnx without the onnx package.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights", hint="see `weights` in the configuration")
    state = _tensors(path)
    return timm_names(without_prefixes(state, path))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".onnx":
            return read_onnx(path)
        if path.suffix in {".pth", ".pt", ".bin"}:
            return load_checkpoint(path)
    except StreamclError:
        raise
    except Exception as error:  # on damaged bytes torch's unpickler raises whatever it stumbles over
        raise WeightsError(f"{path}: unreadable: {error}") from error
    raise WeightsError(f"{path}: weights are .safetensors, .pth, .pt or .onnx, not {path.suffix!r}")


def convert_onnx(path: str | Path, target: str | Path) -> None:
    """Write the weights of the ViT in an ONNX export as safetensors under timm's names.

    Other parts of the graph (a decoder, a classifier) are left out. `target` is written atomically.
    """
    state = {key: value.contiguous() for key, value in read_weights(path).items() if _OF_A_VIT.match(key)}
    files.atomic_write(Path(target), save(state, metadata={"format": "pt"}))


def select_weights(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the part of `state` that fills `model`, by name.

    Weights that a ViT would use and this model does not (layer scales, say) are logged; a classifier, a
    decoder and blocks past the kept depth are left out in silence.

    Args:
        state: a state dict.
        model: the state dict of the model to fill, of the same naming.
        path: of the file, for the messages.

    Raises:
        WeightsError: names are missing, or shapes differ.
    """
    missing = [key for key in model if key not in state]
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of {len(model)} weights are missing: {_some(missing)}",
            hint="check that the file is of this model, not of another size or family",
        )
    wrong = [key for key in model if state[key].shape != model[key].shape]
    if wrong:
        shapes = [f"{key} is {list(state[key].shape)}, not {list(model[key].shape)}" for key in wrong]
        raise WeightsError(f"{path}: weights of another shape: {_some(shapes)}")
    kept = {_part(key) for key in model}
    foreign = [key for key in state if key not in model and _OF_A_VIT.match(key) and _part(key) in kept]
    if foreign:
        logger.warning("%s: %d weights are not used: %s", path, len(foreign), _some(foreign))
    return {key: state[key] for key in model}


def _part(key: str) -> str:
    """Return the block of a weight, or the first part of its name."""
    block = re.match(r"(?:layers\.\d+\.)?blocks\.\d+", key)
    return block.group() if block else key.partition(".")[0]


def refuse_other_patches(state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: str) -> None:
    """Refuse patches of another size: resampled to this one, it would be another model.

    Args:
        state: a state dict as it was read.
        model: the state dict of the model to fill.
        path: of the file, for the message.

    Raises:
        WeightsError: the patch projections have different shapes.
    """
    key = "patch_embed.proj.weight"
    if key in state and state[key].ndim == 4 and state[key].shape != model[key].shape:
        raise WeightsError(f"{path}: {key} is {list(state[key].shape)}, not {list(model[key].shape)}")


def refuse_not_finite(state: Mapping[str, Tensor], path: str) -> None:
    """Refuse a file of a training that has diverged.

    Args:
        state: a state dict.
        path: of the file, for the message.

    Raises:
        WeightsError: a weight holds NaN or infinite numbers.
    """
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{path}: {len(broken)} of {len(state)} weights are not finite numbers: {_some(broken)}",
            hint="the training that wrote the file has diverged; take an earlier checkpoint of it",
        )


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
