"""Frozen linear layers whose weights autocast need not cast again at every call."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
            return affine(x.to(dtype), *cast_layer(self, dtype))


def affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """x W^T + b, [..., o], of x [..., d], W [o, d] and b [o] or None, all of one dtype.

    The bias is added by the product itself where oneDNN can do so and no gradient is wanted; F.linear
    writes it first and has the product add to it: the same bits, in 1.2 times as long.
    """
    plain = torch.is_grad_enabled() or b is None or x.dtype != torch.bfloat16 or x.device.type != "cpu"
    if plain or (one_pass := _one_pass()) is None:
        return F.linear(x, W, b)
    return torch.as_tensor(one_pass(x, W, b, "none", [], ""))


@functools.cache
def _one_pass() -> Callable[..., Tensor] | None:
    """What torch.compile makes of a linear layer on a CPU; None where oneDNN or the processor lacks bf16."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if not torch.backends.mkldnn.is_available() or supported is None or not supported():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def freeze_linears(module: nn.Module) -> None:
    """Make every plain linear layer in a module a FrozenLinear, in its place and with its tensors."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.requires_grad_(False)
            layer.__class__ = FrozenLinear
