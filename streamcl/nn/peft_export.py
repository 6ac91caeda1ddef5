"""Writes adapters in the layouts of PEFT and of timm, and reads PEFT's back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from streamcl.errors import CheckpointError, ConfigError
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import LoRALinear
from streamcl.storage import files

_CONFIG, _WEIGHTS, _CLASSES = "adapter_config.json", "adapter_model.safetensors", "classes.json"
_PREFIX, _FACTORS = "base_model.model.", ("lora_A", "lora_B")


@dataclass(frozen=True, slots=True, eq=False)
class ExportedHead:
    """The classifier of an exported adapter: weight [C, width], bias [C], and the names of its C classes."""

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]


def export_adapter(  # noqa: PLR0917 - the two parts of a head, then where and under which names
    adapters: Adapters,
    head_weight: Tensor | None,
    head_bias: Tensor | None,
    classes: Sequence[str],
    folder: str | Path,
    base_model_name: str,
) -> None:
    """Write a folder that PEFT loads onto the timm model with C outputs: config, adapters, head, class names.

    The q and the v adapter of a layer become one adapter of its qkv. Merged and live parts are exported
    together, factored to their numerical rank; ranks are evened out by zero rows, and the scale is 1.
    A linear layer whose weight was replaced (`Adapters.set_weight`) gets an adapter in the same way.
    Blocks of eva and swin v2 read qkv's weight past PEFT's layer: call `merge_and_unload` there.
    Each of the three files is written atomically, the configuration last.

    Args:
        adapters: those to export.
        head_weight: [C, width], which classifies `Backbone.final` as timm's own head does; None, with the
            bias, to leave out a head that reads other features.
        head_bias: [C], or None.
        classes: the C class names.
        folder: made where it is absent.
        base_model_name: timm's name of the backbone.

    Raises:
        ConfigError: a head of another shape.
    """
    head = _head_tensors(adapters, head_weight, head_bias, len(classes))
    factors = dict(zip(adapters.names, map(_factors, adapters.layers), strict=True))
    factors |= _replaced_factors(adapters)
    rank = max(A.shape[0] for A, _ in factors.values())
    tensors = {
        _key(name, f"{part}.weight"): value
        for name, pair in factors.items()
        for part, value in zip(_FACTORS, _padded(pair, rank), strict=True)
    }
    config = _config(rank, tuple(factors), adapters.backbone.classifier if head else None)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.atomic_write(folder / _WEIGHTS, save(_plain(tensors | head), metadata={"format": "pt"}))
    files.atomic_write(folder / _CLASSES, _json(list(classes)))
    files.atomic_write(folder / _CONFIG, _json(config | {"base_model_name_or_path": base_model_name}))


def load_adapter(adapters: Adapters, folder: str | Path) -> ExportedHead | None:
    """Load an exported folder into the adapters, merged; their live pairs add nothing.

    Return the head, or None where none was exported. Raise CheckpointError, having changed nothing, for
    a file that is absent or damaged, lacks a weight (PEFT only warns), has one too many or does not fit.
    """
    folder = Path(folder)
    try:
        tensors = load((folder / _WEIGHTS).read_bytes())
        classes = tuple(json.loads((folder / _CLASSES).read_bytes()))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: not an exported adapter: {error}") from error
    with_head = any(key.startswith(_PREFIX + adapters.backbone.classifier[0]) for key in tensors)
    edited = _replaced(adapters, tensors)
    pairs = {_key(name, f"{part}.weight") for name in (*adapters.names, *edited) for part in _FACTORS}
    heads = adapters.backbone.classifier if with_head else ()
    expected = pairs | {_key(path, part) for path in heads for part in ("weight", "bias")}
    if expected != set(tensors):
        missing, extra = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise CheckpointError(f"{folder}: adapter weights missing: {missing}, unknown: {extra}")
    layers = zip(adapters.names, adapters.layers, strict=True)
    deltas = [_read_delta(name, layer, tensors) for name, layer in layers]
    gains = {path: _gain(path, tensors, adapters.frozen_weight(path)) for path in edited}
    for layer, delta in zip(adapters.layers, deltas, strict=True):
        layer.unmerge()
        layer.set_adapted_rows(layer.adapted_rows().double() + delta.to(layer.weight.device))
        nn.init.zeros_(layer.lora_B)
    adapters.restore_weights()
    for path, gain in gains.items():
        adapters.set_weight(path, adapters.frozen_weight(path).double() + gain)
    if not with_head:
        return None
    path = adapters.backbone.classifier[0]
    return ExportedHead(tensors[_key(path, "weight")], tensors[_key(path, "bias")], classes)


def export_merged(adapters: Adapters, path: str | Path) -> None:
    """Write the adapted backbone as timm's own state dict, without a head, to a .safetensors file."""
    state = adapters.backbone.model.state_dict()
    for name, layer in zip(adapters.names, adapters.layers, strict=True):
        weight = layer.weight.detach().clone()
        triple = weight.view(3, -1, layer.in_features)
        merged = layer.adapted_rows().double() + layer.delta()
        triple[0], triple[2] = merged.to(weight)
        state[f"{name}.weight"] = weight
    state |= {f"{path}.weight": weight for path, weight in adapters.replaced_weights.items()}
    files.atomic_write(Path(path), save(_plain(state), metadata={"format": "pt"}))


def _factors(layer: LoRALinear) -> tuple[Tensor, Tensor]:
    """Return A [r', d] and B [3o, r'] of one adapter of the whole qkv, merged and live parts."""
    if layer.merged:
        (Aq, Bq), (Av, Bv) = _merged_factors(layer)
    else:
        (Aq, Av), (Bq, Bv) = layer.lora_A.detach().view(2, layer.rank, -1), layer.lora_B.detach()
    B = Bq.new_zeros(layer.out_features, len(Aq) + len(Av))
    third = layer.out_features // 3
    B[:third, : len(Aq)] = Bq
    B[2 * third :, len(Aq) :] = Bv
    return torch.cat([Aq, Av]), B


def _merged_factors(layer: LoRALinear) -> list[tuple[Tensor, Tensor]]:
    """Return A and B of the q and the v delta [o, d], at their numerical ranks.

    A merge rounds the weight to float32, which leaves noise of full rank in the delta. Its spectral norm
    grows with the root of the number of merges and exceeds eps times the weight's after some hundreds of them
    (width 384); from then on the export is larger, not wrong.
    """
    pairs = zip(layer.merged_delta(), layer.adapted_rows(), strict=True)
    return [_above_rounding(delta, weight) for delta, weight in pairs]


def _replaced_factors(adapters: Adapters) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B, by path, of the changes of linear layers whose weight was replaced."""
    weights = adapters.replaced_weights
    return {path: _above_rounding(gain, weights[path]) for path, gain in adapters.weight_changes.items()}


def _above_rounding(delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [r, d] and B [o, r] of a delta [o, d], without singular values of rounding's size."""
    floor = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(weight.double(), 2)
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    rank = int((floor < S).sum())
    root = S[:rank].sqrt()
    return (root[:, None] * Vh[:rank]).float(), (U[:, :rank] * root).float()


def _padded(pair: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    A, B = pair
    missing = max(rank, 1) - A.shape[0]
    return torch.cat([A, A.new_zeros(missing, A.shape[1])]), torch.cat([B, B.new_zeros(len(B), missing)], 1)


def _head_tensors(
    adapters: Adapters, weight: Tensor | None, bias: Tensor | None, classes: int
) -> dict[str, Tensor]:
    if weight is None or bias is None:
        return {}
    width = adapters.backbone.width
    if weight.shape != (classes, width) or bias.shape != (classes,):
        found = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ConfigError(f"the head of {classes} classes is {found}, not [C, {width}] and [C]")
    paths = adapters.backbone.classifier
    return {_key(path, part): value for path in paths for part, value in (("weight", weight), ("bias", bias))}


def _config(rank: int, targets: Sequence[str], heads: Sequence[str] | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": max(rank, 1),
        "lora_alpha": max(rank, 1),  # the scale lora_alpha / r is 1
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "modules_to_save": None if heads is None else list(heads),
        "inference_mode": True,
    }


def _replaced(adapters: Adapters, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of linear layers other than qkv of which the file holds an adapter."""
    ending = ".lora_A.weight"
    found = [key[len(_PREFIX) : -len(ending)] for key in sorted(tensors) if key.endswith(ending)]
    return [path for path in found if path in adapters.linears]


def _gain(name: str, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return B A [out, in] float64, which the adapter adds to a layer's weight."""
    A, B = (tensors[_key(name, f"{part}.weight")].double() for part in _FACTORS)
    outputs, inputs = weight.shape
    if A.ndim != 2 or B.ndim != 2 or (*B.shape, A.shape[1]) != (outputs, len(A), inputs):
        raise CheckpointError(f"{name}: factors {list(B.shape)} and {list(A.shape)} do not fit the layer")
    return (B @ A).to(weight.device)


def _read_delta(name: str, layer: LoRALinear, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the adapter's part of the q and the v rows, [2, o, d] float64."""
    query, key, value = _gain(name, tensors, layer.weight).view(3, -1, layer.in_features)
    if key.any():
        raise CheckpointError(f"{name}: the adapter changes k rows, which streamcl's adapters cannot")
    return torch.stack([query, value])


def _key(path: str, part: str) -> str:
    return f"{_PREFIX}{path}.{part}"


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().float().cpu().contiguous().clone() for key, value in tensors.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
