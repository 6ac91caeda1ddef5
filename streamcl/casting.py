"""Frozen linear layers whose weights autocast need not cast again at every call."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Affine(Protocol):
    """A layer x W^T + b, or x W^T."""

    @property
    def weight(self) -> Tensor:
        """W [o, d]."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """b [o]."""
        ...


def cast_once(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in that dtype; what was cast is kept with the tensor until it is written to."""
    if value.dtype == dtype:
        return value
    key = (dtype, value.device, value._version)
    kept = getattr(value, "_cast_once", None)
    if kept is None or kept[0] != key:
        kept = key, value.detach().to(dtype)
        value._cast_once = kept  # type: ignore[attr-defined]
    return kept[1]


def cast_layer(layer: Affine, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A layer's W and b in that dtype, each cast once."""
    return cast_once(layer.weight, dtype), None if layer.bias is None else cast_once(layer.bias, dtype)


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained: the same product as nn.Linear's under autocast, bit for bit.

    Autocast keeps what it casts of weights that learn, and casts all others at each call: a tenth of a
    ViT-S's time at 16 images on a CPU, a twentieth at 64.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] to [..., o]."""
        kind = x.device.type
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return F.linear(x.to(dtype), *cast_layer(self, dtype))


def freeze_linears(module: nn.Module) -> None:
    """Make every plain linear layer in a module a FrozenLinear, in its place and with its tensors."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.requires_grad_(False)
            layer.__class__ = FrozenLinear
