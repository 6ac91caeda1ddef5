"""Compares features bit for bit: alone and in company, read twice, compiled, and as CUDA graphs.

python benchmarks/bit_equality.py [--backbone vit_base_patch16_224] [--weights none] [--size 224]
    [--device cuda] [--precision bf16-mixed] [--ways "compiled;graphed"]

An image's features must not depend on the images that it comes with: exact forgetting subtracts them from
sums. So a run gives the frozen blocks chunks of one size. `unpadded` shows what would differ without that.
For compiled blocks and CUDA graphs the features may differ from the plain blocks', never from their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from machine import machine
from scaling import samples
from torch import Tensor
from vit_options import add_vit_options, vit_of

from streamcl.config.load import config_from_dict
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.learners.block_features import FrozenReader
from streamcl.nn.device import Compute

COUNTS = (1, 2, 3, 7, 16, 33, 64)
"""Images that come together; primes, powers of two, and one more than half a chunk."""
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"compile": True},
    "graphed": {"cuda_graphs": True},
    "compiled, graphed": {"compile": True, "cuda_graphs": True},
}


@dataclass(frozen=True, slots=True)
class Compared:
    """Whether two readings are equal bit for bit, and their largest difference, of the largest value."""

    equal: bool
    relative: float

    def __str__(self) -> str:
        return "equal" if self.equal else f"differ by {self.relative:.1e}"


def compared(one: Tensor, other: Tensor) -> Compared:
    """Compare features float32 [B, F]."""
    size = float(one.abs().max())
    return Compared(torch.equal(one, other), float((one - other).abs().max()) / size if size else 0.0)


def by_count(reader: FrozenReader, images: Sequence[Sample], whole: Tensor) -> Compared:
    """Compare the features of all images with those read in smaller numbers; return what differs most."""
    found = [
        compared(whole[: len(images) // count * count], _in_parts(reader, images, count))
        for count in COUNTS
        if count <= len(images)
    ]
    return max(found, key=lambda each: (not each.equal, each.relative))


def _in_parts(reader: FrozenReader, images: Sequence[Sample], count: int) -> Tensor:
    return torch.cat(
        [reader(images[at : at + count]) for at in range(0, len(images) - len(images) % count, count)]
    )


def rows(config: dict[str, Any], ways: Sequence[str], images: Sequence[Sample]) -> tuple[Compute, list[str]]:
    """Return how it was computed, and the rows of the table."""
    made, plain = [], None
    for way in ways:
        options = config_from_dict({**config, "backbone": {**config["backbone"], **WAYS[way]}})
        compute = build_compute(options)
        backbone = build_vit(options, compute)
        reader = FrozenReader(backbone, compute, [backbone.depth - 1], tta_views=2)
        whole = reader(images)
        plain = whole if plain is None else plain
        cells = [by_count(reader, images, whole), compared(whole, reader(images)), compared(plain, whole)]
        made.append(f"| {way} | {' | '.join(map(str, cells))} |")
        if way == "plain":
            fitted = FrozenReader(backbone, compute.for_requests(), reader.blocks, tta_views=2)
            made.append(f"| unpadded | {by_count(fitted, images, whole)} | | |")
    return compute, made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_vit_options(parser)
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--count", type=int, default=130, help="images; two chunks and a rest by default")
    parser.add_argument("--ways", default="", help=f"of {', '.join(list(WAYS)[1:])}, by semicolons")
    args = parser.parse_args()
    config = {
        "source": "demo_digits",
        "backbone": vit_of(args),
        "device": args.device,
        "precision": args.precision,
    }
    ways = ["plain", *(each for each in args.ways.split(";") if each)]
    compute, made = rows(config, ways, samples(args.count, args.size))
    print(machine(compute), compute)
    print("| | in other numbers | read twice | against plain |\n|---|---|---|---|")
    print("\n".join(made))


if __name__ == "__main__":
    main()
