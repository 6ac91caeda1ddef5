"""Imports timm, finds the blocks of its transformers, and refuses models that cannot be adapted."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from streamcl.errors import ConfigError, nearest
from streamcl.sources.deferred_compiler import deferred_compiler
from streamcl.sources.torchvision_package import declare_torchvision_operators

_FAMILIES = {  # whose stem, blocks and head `Backbone` knows how to run one by one
    "timm.models.vision_transformer.VisionTransformer",
    "timm.models.eva.Eva",
    "timm.models.swin_transformer.SwinTransformer",
    "timm.models.swin_transformer_v2.SwinTransformerV2",
}


def block_paths(model: Any) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the paths of the blocks in order, and by the first block of a stage its downsampling (swin)."""
    if hasattr(model, "blocks"):
        return tuple(f"blocks.{index}" for index in range(len(model.blocks))), {}
    paths: list[str] = []
    downsample: dict[int, str] = {}
    for number, stage in enumerate(model.layers):
        downsample[len(paths)] = f"layers.{number}.downsample"
        paths += [f"layers.{number}.blocks.{index}" for index in range(len(stage.blocks))]
    return tuple(paths), downsample


def fused_qkv(block: nn.Module) -> Any:
    """Return the block's fused query-key-value projection, or None where it has none."""
    projection = getattr(getattr(block, "attn", None), "qkv", None)
    return projection if isinstance(projection, nn.Module) and hasattr(projection, "weight") else None


def tokens_of_head(model: Any, block: nn.Module) -> int:
    """Return how many of a last block's tokens, the first ones, the head reads; 0: all, or it is unknown."""
    plain = _name(type(block)) == "timm.models.vision_transformer.Block"
    return int(model.num_prefix_tokens) if plain and getattr(model, "global_pool", None) == "token" else 0


def refuse_unknown(timm: ModuleType, name: str) -> None:
    """Raise ConfigError, with the nearest names, for a model that timm does not have."""
    architecture = name.partition(".")[0]  # what follows the dot names the weights
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models(), "timm.list_models() has")
        raise ConfigError(f"timm has no model {name!r}", hint=hint)


def refuse_unfit(name: str, model: nn.Module) -> None:
    """Raise ConfigError for another family, for blocks without fused qkv, for a side that cuts a patch."""
    if not _FAMILIES & set(map(_name, type(model).__mro__)):
        kind = type(model).__name__
        raise ConfigError(f"{name} is a {kind}, not of the vit, deit, dino, eva or swin family")
    for path in block_paths(model)[0]:
        if fused_qkv(model.get_submodule(path)) is None:
            hint = "choose a vit, deit, dino or swin"
            raise ConfigError(f"{name}: {path} has no fused qkv projection", hint=hint)
    embedding: Any = model.patch_embed
    (height, width), patch = embedding.img_size, embedding.patch_size[0]
    if height != width or height % patch:
        hint = f"use {height // patch * patch} or {(height // patch + 1) * patch}"
        raise ConfigError(
            f"{name}: {height}x{width} pixels are not a square grid of patches of {patch}", hint=hint
        )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def truncate_blocks(name: str, model: Any, depth: int | None) -> None:
    """Drop the blocks from `depth` on. In swin only the last stage's can go: its width is the norm's."""
    paths, downsample = block_paths(model)
    first, blocks = max(downsample, default=0), len(paths)
    if depth is None or depth == blocks:
        return
    if not first < depth < blocks:
        raise ConfigError(f"{name} has {blocks} blocks: depth is {depth}, expected {first + 1}..{blocks}")
    last = model.layers[-1] if downsample else model
    last.blocks = last.blocks[: depth - first]


def import_timm() -> ModuleType:
    """Return timm, imported after `declare_torchvision_operators` and without torch's compiler."""
    declare_torchvision_operators()
    with deferred_compiler():
        import timm
        import timm.data

    return timm  # type: ignore[no-any-return]
