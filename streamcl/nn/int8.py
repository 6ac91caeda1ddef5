"""Frozen blocks whose linear layers multiply in int8, for features without gradients on a CPU."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from streamcl.errors import ConfigError
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

LEVELS = 63
"""Steps of activations to each side of zero: seven bits, as AVX2 adds two products in 16 bits."""
ENGINE = "fbgemm"
"""Torch's int8 products for x86, whose sums of integers are exact."""


class Int8Linear(nn.Module):
    """x W^T + b with weights scaled by output and activations by token, so that no token depends on another.

    The products are sums of integers, exact, so a token's result is the same to the last bit whichever tokens
    come with it. Dynamic scales by row are those of LLM.int8() (arXiv 2208.07339, section 2.1). Torch has
    announced that it will remove these products.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        W = layer.weight.detach().float()
        scales = W.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny).double() / 127
        zeros = torch.zeros(len(W), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantize_per", category=UserWarning)  # deprecated
            by_output = torch.quantize_per_channel(W, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(by_output, None)
        self._bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [..., o] of x [..., d]."""
        largest = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / LEVELS, LEVELS + 1, self._packed
        )
        if self._bias is None:
            return torch.as_tensor(product * largest)
        return torch.addcmul(self._bias, product, largest)


def quantise_blocks(backbone: Backbone, compute: Compute) -> None:
    """Have the linear layers of the frozen blocks multiply in int8 wherever no gradients are needed.

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
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        backbone.use_quick_blocks([_quantised(block) for block in backbone.blocks], rows=None)
    finally:
        torch.backends.quantized.engine = before


def _quantised(block: nn.Module) -> nn.Module:
    made = copy.deepcopy(block)
    for name, layer in [*made.named_modules()]:
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, Int8Linear(layer))
    return made
