"""Measures what cheaper ways of reading two views of an image cost in accuracy and gain in time.

    python benchmarks/less_work.py [--packs office_caltech10,emoji_dev] [--train 600] [--test 500] [--size 70]

Each way gives the mean feature of two views of an image, by the first 11 blocks of a ViT-S (by pip):

    two views           both at full size, as `ridge` with `tta_views: 2` and `ridge_lora` read them
    one view            the image alone
    small second view   the second view, the image without a tenth at each border, at its own size
    merged tokens       one pair of alike patch tokens of each image merged at each block (ToMe, arXiv
                        2210.09461), with the attention in proportion to their sizes
    int8                frozen products in int8 (`backbone: {int8: true}`)

A ridge head learns `--train` and predicts `--test` images of a development pack (STREAMCL_DEV_DATA names the
folder). Printed are its accuracy in per cent, the mean over three random halves of twice as many images and
its standard error, and the processor time of 64 images as a multiple of that of two views: the ways take
turns, and quartiles of the ratios are given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from machine import machine
from stability import BACKBONE, DATA
from torch import Tensor
from torch.nn import functional as F
from views import accuracy_of_halves, dataset_labels

from streamcl.config.load import config_from_dict
from streamcl.events import Sample
from streamcl.factory.backbone import build_vit
from streamcl.learners.block_features import (
    CROPPED_BORDER,
    concat_block_tokens,
    evenly_spaced_blocks,
    tta_views,
)
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.nn.int8 import quantise_blocks
from streamcl.nn.process_settings import configure_process
from streams.datasets.npz import npz

Way = Callable[[Tensor], Tensor]
"""Returns features [B, D] of pixels [B, 3, S, S]."""
FLOAT32 = Compute(torch.device("cpu"), "32-true", rows=64)
CHUNK, SEEDS, TURNS = 32, 3, 7


def main() -> None:
    """Print a table of accuracies and one of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", default="office_caltech10,emoji_dev")
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--size", type=int, default=70)
    parser.add_argument("--times-only", action="store_true")
    options = parser.parse_args()
    configure_process(threads=None)
    backbone = vit_of(options.size)
    every = ways(backbone)
    print(json.dumps(machine(FLOAT32)))
    print_times(every, torch.randn(64, 3, options.size, options.size))
    for pack in [] if options.times_only else options.packs.split(","):
        parts = [features(backbone, every, pack, part, options) for part in (0, 1)]
        print(f"| {pack} | accuracy |\n|---|---|")
        for name in every:
            shares = [accuracy_of_halves(*(part[name] for part in parts), seed=seed) for seed in range(SEEDS)]
            error = np.std(shares, ddof=1) / SEEDS**0.5
            print(f"| {name} | {100 * np.mean(shares):.1f} ± {100 * error:.1f} |", flush=True)


def vit_of(size: int) -> Backbone:
    """Return the pretrained backbone at an image size, in float32."""
    config = config_from_dict({"source": "x", "backbone": {**BACKBONE, "image_size": size}})
    return build_vit(config, FLOAT32)


def ways(backbone: Backbone) -> dict[str, Way]:
    """Return the ways of reading, by name."""
    small = vit_of(backbone.image_size - 2 * border(backbone.image_size))
    quantised = vit_of(backbone.image_size)
    quantise_blocks(quantised, FLOAT32)
    return {
        "two views": lambda pixels: mean_of_two(pixels, lambda both: plain(backbone, both)),
        "one view": lambda pixels: plain(backbone, pixels),
        "small second view": lambda pixels: (
            (plain(backbone, pixels) + plain(small, inner(pixels).flip(-1).contiguous())) / 2
        ),
        "merged tokens": lambda pixels: mean_of_two(pixels, lambda both: merged_tokens(backbone, both)),
        "int8": lambda pixels: mean_of_two(pixels, lambda both: plain(quantised, both)),
    }


def border(side: int) -> int:
    """Return the pixels that the second view leaves out at each side."""
    return max(1, int(side * CROPPED_BORDER))


def inner(pixels: Tensor) -> Tensor:
    """Return [B, 3, s, s] of pixels [B, 3, S, S]: what the second view shows."""
    edge = border(pixels.shape[-1])
    return pixels[..., edge:-edge, edge:-edge]


def mean_of_two(pixels: Tensor, read: Way) -> Tensor:
    """Return the mean feature [B, D] of two views of pixels [B, 3, S, S], read together."""
    return read(torch.cat(tta_views(pixels, 2))).view(2, len(pixels), -1).mean(0)


def plain(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return the features [B, D] of pixels [B, 3, S, S]."""
    blocks = evenly_spaced_blocks(backbone.depth)
    outputs = backbone.run(backbone.stem(pixels), 0, blocks[-1] + 1)
    return concat_block_tokens(backbone, outputs, blocks)


def merged_tokens(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return the features [B, D] where each block merges one pair of patch tokens of each image."""
    x = backbone.stem(pixels)
    sizes = x.new_ones(x.shape[:2])
    places = (
        torch.arange(x.shape[1]).expand(len(x), -1).clone()
    )  # of each patch of the image among the tokens
    outputs = []
    timm_blocks: Sequence[Any] = backbone.blocks
    for block in timm_blocks:
        keys, x = attended(block, x, sizes)
        x, sizes, places = merged(x, keys, sizes, places)
        x = x + block.ls2(block.mlp(block.norm2(x)))
        outputs.append(x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])))
    blocks = evenly_spaced_blocks(backbone.depth)
    return concat_block_tokens(backbone, outputs, blocks)


def attended(block: Any, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys [B, N, d / H], averaged over heads, and the tokens [B, N, d] after the attention."""
    attention = block.attn
    shape = (*x.shape[:2], 3, attention.num_heads, attention.head_dim)
    q, k, v = attention.qkv(block.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
    bias = sizes.log()[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(-1, -1, x.shape[1], -1))
    out = attention.proj(mixed.transpose(1, 2).flatten(2))
    return k.mean(1), x + block.ls1(out)


def merged(x: Tensor, keys: Tensor, sizes: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens [B, N - 1, d], sizes [B, N - 1] and places [B, P] with the most alike pair merged.

    The pair is one of every second patch token and one of those between (bipartite soft matching).

    Args:
        x: [B, N, d].
        keys: [B, N, k].
        sizes: [B, N], patches that each token stands for.
        places: int64 [B, P], the token of each patch.
    """
    keys = F.normalize(keys, dim=-1)
    alike = keys[:, 1::2] @ keys[:, 2::2].transpose(1, 2)  # [B, odd, even]
    best = alike.flatten(1).argmax(1)
    source, target = 1 + 2 * (best // alike.shape[2]), 2 + 2 * (best % alike.shape[2])
    rows = torch.arange(len(x))
    weights = sizes[rows, source], sizes[rows, target]
    total = weights[0] + weights[1]
    x, sizes = x.clone(), sizes.clone()
    x[rows, target] = (x[rows, source] * weights[0][:, None] + x[rows, target] * weights[1][:, None]) / total[
        :, None
    ]
    sizes[rows, target] = total
    left = torch.arange(x.shape[1] - 1).expand(len(x), -1)
    left = left + (left >= source[:, None])
    places = torch.where(places == source[:, None], target[:, None], places)
    places = places - (places > source[:, None]).long()
    return x.gather(1, left[..., None].expand(-1, -1, x.shape[-1])), sizes.gather(1, left), places


def features(
    backbone: Backbone, every: Mapping[str, Way], pack: str, part: int, options: argparse.Namespace
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by way, features [N, D] of training (0) or test (1) images of a pack, and their classes [N]."""
    dataset = npz(DATA / f"{pack}.npz")[part]
    limit = 2 * (options.test if part else options.train)
    chosen = np.random.default_rng(part).permutation(len(dataset))[:limit]
    names = sorted({str(label) for label in dataset_labels(pack)})
    rows: dict[str, list[Tensor]] = {name: [] for name in every}
    targets = []
    for start in range(0, len(chosen), CHUNK):
        samples: list[Sample] = [dataset[int(place)] for place in chosen[start : start + CHUNK]]
        targets += [names.index(str(each.label)) for each in samples]
        with torch.no_grad():
            pixels = backbone.prepare([each.image for each in samples])
            for name, read in every.items():
                rows[name].append(read(pixels))
    return {name: (torch.cat(each), torch.tensor(targets)) for name, each in rows.items()}


def print_times(every: Mapping[str, Way], pixels: Tensor) -> None:
    """Print the processor time of each way as a multiple of that of two views, for pixels [B, 3, S, S]."""
    taken: dict[str, list[float]] = {name: [] for name in every}
    with torch.no_grad():
        for turn in range(TURNS + 1):
            for name, read in every.items():
                start = time.process_time()
                read(pixels)
                if turn:  # the first warms up
                    taken[name].append(time.process_time() - start)
    print(f"| {pixels.shape[-1]} pixels | of the time of two views | quartiles |\n|---|---|---|")
    for name, seconds in taken.items():
        low, middle, high = np.quantile(np.divide(seconds, taken["two views"]), (0.25, 0.5, 0.75))
        print(f"| {name} | {middle:.2f} | {low:.2f} - {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
