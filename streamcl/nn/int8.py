"""Linear layers of frozen blocks that multiply in int8, for features without gradients on a CPU."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.nn.fast_paths import write_count
from streamcl.nn.frozen_linear import FrozenLinear

if TYPE_CHECKING:
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

LEVELS = 63
"""Steps of activations to each side of zero: seven bits, as AVX2 adds two products in 16 bits."""
ENGINE = "fbgemm"
"""Torch's int8 products for x86, whose sums of integers are exact."""


def int8_affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return x W^T + b, float32 [..., o], with W scaled by output and x by token.

    The products are sums of integers, exact, so a token's result is the same to the last bit whichever tokens
    come with it. Dynamic scales by row are those of LLM.int8() (arXiv 2208.07339, section 2.1). Torch has
    announced that it will remove these products.

    Args:
        x: float32 [..., d].
        W: [o, d]; keeps its int8 form until it is written to.
        b: [o], or None.
    """
    largest = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        x / largest, 1 / LEVELS, LEVELS + 1, _packed_once(W)
    )
    return torch.as_tensor(product * largest) if b is None else torch.addcmul(b, product, largest)


def _packed_once(W: Tensor) -> Any:
    """Return a weight [o, d] in torch's packed int8 form; the tensor keeps it until it is written to."""
    writes, kept = write_count(W), getattr(W, "_packed_once", None)
    if writes is None or kept is None or kept[0] != writes:
        kept = writes, _packed(W.detach().float())
        W._packed_once = kept  # type: ignore[attr-defined]
    return kept[1]


def _packed(W: Tensor) -> Any:
    scales = W.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny).double() / 127
    zeros = torch.zeros(len(W), dtype=torch.long)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantize_per", category=UserWarning)  # deprecated
            by_output = torch.quantize_per_channel(W, scales, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(by_output, None)
    finally:
        torch.backends.quantized.engine = before


def quantise_blocks(backbone: Backbone, compute: Compute) -> None:
    """Have the linear layers of the frozen blocks multiply in int8 wherever no gradients are needed.

    Adapted copies of the blocks do so too, once their adapters are frozen.

    Raises:
        ConfigError: the device is no CPU, the precision is not float32, or torch has no such products here.
    """
    if compute.device.type != "cpu" or compute.precision != "32-true":
        raise ConfigError(
            f"backbone.int8 is for float32 on a CPU, and this is {compute.precision} on {compute.device}",
            hint="device: cpu and precision: 32-true, or backbone: {int8: null}",
        )
    if ENGINE not in torch.backends.quantized.supported_engines or not hasattr(torch, "quantize_per_channel"):
        raise ConfigError(
            f"backbone.int8: torch {torch.__version__} has no {ENGINE} here, its int8 products for x86",
            hint="another processor or an older torch, or backbone: {int8: null}",
        )
    for block in backbone.blocks:
        for layer in block.modules():
            if isinstance(layer, FrozenLinear):
                layer.quick_product = int8_affine
