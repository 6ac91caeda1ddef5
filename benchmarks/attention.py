"""Prints what three ways to compute attention cost in a learning step in bf16 on a CPU: time, and bytes kept.

    python benchmarks/attention.py [--backbone vit_base_patch16_224] [--size 224] [--batch 16] [--rounds 3]
        [--depth 12] [--clock wall|cpu]

plain keeps the maps of all blocks for the backward pass, recomputed those of one at a time, fused is torch's
kernel, which has none. A step is forward and backward through all adapted blocks, on random weights; they
take turns. Kept are the bytes of all tensors that the backward pass holds. Ratios are to plain in the same
round.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from machine import machine
from scaling import configuration, vit
from throughput import CLOCKS

from streamcl.factory.backbone import build_compute, build_vit
from streamcl.nn import adapted_blocks
from streamcl.nn.adapted_blocks import Adapters


def main() -> None:
    """Measure in turns, and print a line for each kind."""
    args = _arguments()
    backbone_options = vit(args.backbone, args.size, depth=args.depth)
    config = configuration(precision="bf16-mixed", device="cpu", backbone=backbone_options)
    compute = build_compute(config)
    backbone = build_vit(config, compute)
    adapters = Adapters(backbone, rank=4, first_block=0, generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(args.batch, 3, args.size, args.size)
    with torch.no_grad(), compute.autocast():
        tokens = backbone.stem(pixels)
    attention: Any = adapters.blocks[0].attn
    heads, count = attention.num_heads, tokens[0, ..., 0].numel()
    of_block = adapted_blocks.attention_map_bytes(tokens, heads)
    limits = {"plain": of_block * len(adapters.blocks), "recomputed": of_block, "fused": of_block - 1}
    seconds: dict[str, list[float]] = {kind: [] for kind in limits}
    kept = {kind: _step(adapters, tokens, limit) for kind, limit in limits.items()}
    for _ in range(args.rounds):
        for kind, limit in limits.items():
            began = CLOCKS[args.clock]()
            _step(adapters, tokens, limit)
            seconds[kind].append(CLOCKS[args.clock]() - began)
    print(machine(compute), f"{args.backbone}, {count} tokens, {args.depth} blocks, batch {args.batch}")
    print("| attention | seconds, median | of plain, median (least - most) | GB kept |\n|---|---:|---:|---:|")
    for kind, found in seconds.items():
        ratios = np.array(found) / np.array(seconds["plain"])
        spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} - {ratios.max():.2f})"
        print(f"| {kind} | {np.median(found):.2f} | {spread} | {kept[kind] / 1e9:.3f} |")


def _step(adapters: Adapters, tokens: torch.Tensor, limit: int) -> int:
    """Make a step with room for so many bytes of maps; return the bytes that are kept on the way back."""
    adapted_blocks.ATTENTION_MAP_LIMIT = limit
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = adapters.forward_head(tokens).square().mean()
        torch.autograd.grad(loss, list(adapters.trainable().values()))
    return sum(kept.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--size", type=int, default=224, help="side in pixels that the backbone sees")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--depth", type=int, default=12, help="the first so many blocks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
