"""Gradients of adapters on a few bases of the patch grid beside those in full: cosine, and memory kept.

    python benchmarks/grad_filter.py [--pack office_caltech10] [--images 64] [--batch 16] [--size 112]

A pretrained ViT-S with adapters in its last seven blocks, whose pairs are drawn at random, and a random
linear head. For each basis: the cosine of all adapters' gradients with those of plain back-propagation, of
those of lora_A alone, and of those in the first of these blocks, which have the longest way; and the
megabytes that one step keeps for its backward pass, weights left out.
Low-pass bases (`lbp_wht`) and cells of patches (`grad_filter`) are compared at about equal numbers of bases.
`--rounds 9` also prints the processor time of a step, taking turns, relative to low-pass bases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from stability import BACKBONE, DATA
from torch import Tensor
from torch.nn import functional as F

from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.backbone import Backbone
from streamcl.nn.low_pass_backprop import LowPass, cell_basis, low_pass_basis
from streams.datasets.npz import npz

CLASSES = 10
FIRST_BLOCK = 4
RANK = 4


@dataclass(frozen=True)
class Gradients:
    """The adapters' gradients of some images by name, and the bytes that the largest step keeps."""

    by_name: dict[str, Tensor]
    kept: int

    def cosine(self, other: Gradients, part: str = "") -> float:
        """Return the cosine of the gradients whose names have this part, as one vector."""
        names = [name for name in self.by_name if part in name]
        one, two = (torch.cat([each.by_name[n].flatten() for n in names]) for each in (self, other))
        return float(F.cosine_similarity(one.double(), two.double(), dim=0))


def gradients(backbone: Backbone, batches: Sequence[Tensor], low_pass: LowPass | None) -> Gradients:
    """Return the summed gradients of batches of pixels [B, 3, S, S]."""
    draw = torch.Generator().manual_seed(0)
    adapters = Adapters(backbone, rank=RANK, first_block=FIRST_BLOCK, generator=draw, low_pass=low_pass)
    trained = adapters.trainable()
    with torch.no_grad():
        for name, parameter in trained.items():
            if name.endswith("lora_B"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    head = torch.randn(CLASSES, backbone.width, generator=draw) / backbone.width**0.5
    total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    kept = 0
    for pixels in batches:
        targets = torch.randint(CLASSES, (len(pixels),), generator=draw)
        with torch.no_grad():
            tokens = backbone.run(backbone.stem(pixels), 0, FIRST_BLOCK)[-1]
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(adapters.forward_head(tokens) @ head.T, targets, reduction="sum")
        kept = max(kept, sum(sizes.values()))
        found = torch.autograd.grad(loss, list(trained.values()))
        for name, gradient in zip(trained, found, strict=True):
            total[name] += gradient
    return Gradients(total, kept)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="office_caltech10")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=0)
    arguments = parser.parse_args()
    settings = {
        "source": "digits",
        "backbone": {**BACKBONE, "image_size": arguments.size},
        "learner": "ridge",
    }
    config = config_from_dict(settings)
    backbone = build_vit(config, build_compute(config))
    part = npz(DATA / f"{arguments.pack}.npz")[0]
    places = range(0, len(part), max(1, len(part) // arguments.images))
    images = [part[i].image for i in places][: arguments.images]
    batches = list(backbone.prepare(images).split(arguments.batch))
    assert backbone.grid is not None
    prefix, height, width = backbone.grid
    print(f"{height} x {width} patches; {len(images)} images in batches of {arguments.batch}\n")
    print("| | bases | cosine | of lora_A | of the first block | MB kept |\n|---|---|---|---|---|---|")
    whole = gradients(backbone, batches, None)
    print(f"| in full | {height * width} | 1 | 1 | 1 | {whole.kept / 2**20:.0f} |")
    for order in (1, 2, 3, 5):
        low_pass = LowPass(prefix, low_pass_basis(height, width, order))
        show(f"lbp_wht, order {order}", low_pass, backbone, batches, whole)
    for side in (1, 2, 3, 4, height):
        for pooled in (False, True):
            low_pass = LowPass(prefix, cell_basis(height, width, side), pools_activations=pooled)
            name = f"grad_filter, patch {side}{', pooled activations' if pooled else ''}"
            show(name, low_pass, backbone, batches, whole)
    if arguments.rounds:
        time_steps(backbone, batches[:1], arguments.rounds)


def time_steps(backbone: Backbone, batches: Sequence[Tensor], rounds: int) -> None:
    """Print the processor time of a step, relative to that of the same round on low-pass bases."""
    assert backbone.grid is not None
    prefix, height, width = backbone.grid
    cells = cell_basis(height, width, 2)
    kinds = {
        "lbp_wht, order 5": LowPass(prefix, low_pass_basis(height, width, 5)),
        "in full": None,
        "grad_filter, patch 2": LowPass(prefix, cells),
        "the same, pooled activations": LowPass(prefix, cells, pools_activations=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        seconds = {}
        for name, low_pass in kinds.items():
            began = time.process_time()
            gradients(backbone, batches, low_pass)
            seconds[name] = time.process_time() - began
            ratios[name].append(seconds[name] / seconds["lbp_wht, order 5"])
    print("\n| | processor time |\n|---|---|")
    for name, found in ratios.items():
        print(f"| {name} | {median(found):.2f} |")


def show(
    name: str, low_pass: LowPass, backbone: Backbone, batches: Sequence[Tensor], whole: Gradients
) -> None:
    """Print one row."""
    found = gradients(backbone, batches, low_pass)
    bases = len(low_pass.basis) - (backbone.grid or (0,))[0]
    parts = ("", "lora_A", f"blocks.{FIRST_BLOCK}.")
    cosines = " | ".join(f"{found.cosine(whole, part):.3f}" for part in parts)
    print(f"| {name} | {bases} | {cosines} | {found.kept / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
