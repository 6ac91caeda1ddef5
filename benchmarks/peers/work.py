"""The work that every peer does: the same images in the same order, the same frozen ViT and LoRA layer.

Imports NumPy, torch and timm alone, since each peer runs in a virtual environment of its own. `prepare.py`
writes the folder that `read_work` reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGES, WEIGHTS, OPTIONS = "images.npz", "backbone.safetensors", "work.json"
RANK = 4
"""Rank of each adapter, as in Online-LoRA (arXiv 2411.05663) and by default in streamcl."""


@dataclass(frozen=True, slots=True)
class Work:
    """Images uint8 [N, 3, S, S] in the order of the stream, labels int64 [N], and the same held out.

    Attributes:
        folder: where `run.py` wrote all this.
        options: backbone (timm's name), depth, size (pixels of a side), batch, rate, threads, seed.
    """

    folder: Path
    options: dict[str, Any]
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def batch(self) -> int:
        """Return the number of images in a batch."""
        return int(self.options["batch"])

    @property
    def rate(self) -> float:
        """Return Adam's learning rate."""
        return float(self.options["rate"])

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (3, S, S)."""
        return tuple(self.images.shape[1:])

    def features(self) -> nn.Sequential:
        """Return the frozen ViT: images [B, 3, S, S] or [B, 3 * S * S], of 0 to 255 -> tokens [B, d]."""
        import timm  # after `measure.declare_operators`, where it is needed

        vit = timm.create_model(
            self.options["backbone"], pretrained=False, num_classes=0, img_size=self.options["size"]
        )
        vit.blocks = vit.blocks[: self.options["depth"]]
        vit.load_state_dict(load_file(self.folder / WEIGHTS))
        moments = timm.data.resolve_model_data_config(vit)
        pixels = Pixels(moments["mean"], moments["std"], self.image_shape)
        return nn.Sequential(pixels, vit).requires_grad_(requires_grad=False)

    def adapted(self) -> nn.Sequential:
        """Return the ViT with LoRA on q and v of every block, and a linear head; only these are trained."""
        model = self.features()
        vit: Any = model[1]
        for block in vit.blocks:
            block.attn.qkv = LoRA(block.attn.qkv)
        return model.append(nn.Linear(vit.num_features, self.classes))


class Pixels(nn.Module):
    """Numbers to 255, in any shape -> normalised float32 [B, 3, S, S]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.view(-1, *self.shape).float() - self.mean) / self.std


class LoRA(nn.Module):
    """A frozen qkv projection with rank-4 LoRA on q and on v: one product down and one up for both pairs."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen, width = frozen, frozen.in_features
        self.A = nn.Parameter(torch.empty(2 * RANK, width))
        self.B = nn.Parameter(torch.zeros(2, width, RANK))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        query, value = self.B
        none = torch.zeros_like(query)
        rows = torch.cat(
            [torch.cat([query, none], 1), torch.cat([none, none], 1), torch.cat([none, value], 1)]
        )
        qkv: Tensor = self.frozen(x)
        return qkv + F.linear(F.linear(x, self.A), rows)


def read_work(folder: Path) -> Work:
    """Return the work in a folder."""
    options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    with np.load(folder / IMAGES) as pack:
        x, y, test = (
            torch.from_numpy(pack["x"]).permute(0, 3, 1, 2),
            torch.from_numpy(pack["y"]),
            pack["split"] == 1,
        )
    return Work(folder, options, x[~test].contiguous(), y[~test], x[test].contiguous(), y[test])
