"""Turns the weight names of Hugging Face's ViT and DINOv2 into timm's, joining query, key and value."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_SIGN = re.compile(r"(?:^|\.)encoder\.layer\.0\.attention\.attention\.query\.bias$")
_OUTER = re.compile(r"^.*?(?=embeddings\.|encoder\.layer\.|layernorm\.(?:weight|bias)$)")
_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under timm's names; another state dict than Hugging Face's stays as it is."""
    if not any(_SIGN.search(key) for key in state):
        return dict(state)
    renamed = _with_fused_qkv(
        {_renamed(key): value for key, value in state.items() if "mask_token" not in key}
    )
    if "reg_token" in renamed:  # timm's model with registers has positions of patches only
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _renamed(key: str) -> str:
    key = _OUTER.sub("", key, count=1)
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def _with_fused_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value, whose rows timm keeps in one matrix in this order."""
    for query in [key for key in state if ".attn.query." in key]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[query.replace(".query.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    return state
