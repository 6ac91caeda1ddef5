"""Backbones of every family, small enough for a test, with no weight that hides a fault by being tiny."""

import functools

import numpy as np
import torch

from streamcl.nn.backbone import Backbone
from streamcl.nn.build import build_backbone
from streamcl.nn.timm_compat import import_timm

timm = import_timm()

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
STAGED = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (1, 2),
    "num_heads": (2, 2),
    "window_size": 4,
}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", PLAIN),
    "deit": ("deit_tiny_distilled_patch16_224", PLAIN),
    "dinov2": ("vit_small_patch14_reg4_dinov2", PLAIN),
    "dinov3": ("vit_small_patch16_dinov3", PLAIN),
    "eva": ("eva_giant_patch14_224", PLAIN),
    "rope_mixed": ("vit_base_patch16_rope_mixed_224", PLAIN),
    "siglip": ("vit_base_patch16_siglip_224", PLAIN),
    "swin": ("swin_tiny_patch4_window7_224", STAGED),
    "swinv2": ("swinv2_tiny_window8_256", STAGED),
}


def build(family: str, **options) -> Backbone:
    """A fresh random backbone, every parameter moved, since layer scales of 1e-5 would hide the blocks."""
    name, args = FAMILIES[family]
    backbone = build_backbone(name, **{"weights": "none", "args": args, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in backbone.named_parameters():
            if "rope" in path:  # read once, when the backbone is made
                continue
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone


@functools.cache
def shared(family: str) -> Backbone:
    """One backbone a family for the tests that leave it unchanged."""
    return build(family)


def images(count: int = 3, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
