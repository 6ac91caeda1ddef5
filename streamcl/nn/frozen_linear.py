"""Frozen nn.Linear that caches the copy of its weights which autocast needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.nn.fast_paths import fused_bias_linear, write_count

Product: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Returns x W^T + b, [..., o], of x [..., d], W [o, d] and b, [o] or None."""


def cast_once(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values of any shape in `dtype`; the tensor keeps the cast until it is written to.

    Args:
        value: of any shape.
        dtype: that of the result.
    """
    if value.dtype == dtype:
        return value
    if (writes := write_count(value)) is None:
        return value.detach().to(dtype)
    key = (dtype, value.device, writes)
    kept = getattr(value, "_cast_once", None)
    if kept is None or kept[0] != key:
        kept = key, value.detach().to(dtype)
        value._cast_once = kept  # type: ignore[attr-defined]
    return kept[1]


def cast_linear(W: Tensor, b: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the weight [o, d] and the bias [o] of a linear layer in `dtype`, each cast once.

    Args:
        W: [o, d].
        b: [o], or None.
        dtype: that of the product.
    """
    return cast_once(W, dtype), None if b is None else cast_once(b, dtype)


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained: the same product as nn.Linear's under autocast, bit for bit.

    Autocast caches its casts of weights that require gradients, and casts all others at each call.
    quick_product: another product for passes without gradients; None: none.
    """

    quick_product: Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, [..., o], of x [..., d], in autocast's dtype."""
        kind = x.device.type
        if self.quick_product is not None and not torch.is_grad_enabled():
            return self.quick_product(x, self.weight, self.bias)
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(kind):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return affine(x.to(dtype), *cast_linear(self.weight, self.bias, dtype))


def affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return x W^T + b, [..., o].

    Without gradients, in bf16 on a CPU, the product adds the bias itself (`fused_bias_linear`).

    Args:
        x: [..., d], of one dtype with W and b.
        W: [o, d].
        b: [o], or None.
    """
    fits = b is not None and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    product = fused_bias_linear() if fits and not torch.is_grad_enabled() else None
    return F.linear(x, W, b) if product is None or b is None else product(x, W, b)


def freeze_linears(module: nn.Module) -> None:
    """Turn every plain linear layer of a module into a FrozenLinear, in place.

    The layer's class is changed, which keeps hooks and timm's references to the layer; FrozenLinear has no
    state of its own.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.requires_grad_(False)
            layer.__class__ = FrozenLinear
