"""Private interfaces of torch that make streamcl faster; where one is missing, a public one is used.

`STREAMCL_FAST_PATHS=0` in the environment, or `without_fast_paths()`, turns all of them off.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

PRIVATE_NAMES = (
    "ops.mkldnn._is_mkldnn_bf16_supported",
    "ops.mkldnn._linear_pointwise",
    "cpu._is_avx512_bf16_supported",
    "Tensor._version",
    "_foreach_norm",
)
"""Attributes of torch that this module reads. A test says which of them an upgrade of torch has removed."""

_ALLOWED = ContextVar("streamcl_fast_paths", default=True)


def enabled() -> bool:
    """Return whether fast paths are taken: not under `without_fast_paths`, nor with STREAMCL_FAST_PATHS=0."""
    return _ALLOWED.get() and os.environ.get("STREAMCL_FAST_PATHS") != "0"


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Take none of the fast paths while the block runs, in this thread."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def fused_bias_linear() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return x W^T + b in one pass for bf16 on a CPU, None where oneDNN or the processor cannot.

    F.linear writes b first and has the product add to it: the same bits, in 1.1 to 1.2 times as long.
    """
    return find_fused_bias_linear() if enabled() else None


@functools.cache
def find_fused_bias_linear() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return the product with a bias that oneDNN has for bf16, None where it has none; looked for once."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # torch.compile makes it of nn.Linear
    if not torch.backends.mkldnn.is_available() or supported is None or product is None or not supported():
        return None
    return lambda x, W, b: torch.as_tensor(product(x, W, b, "none", [], ""))


def write_count(value: Tensor) -> int | None:
    """Return how often a tensor of any shape was written to in place, None where that is not known.

    A cached cast of a frozen weight is valid for one such number. Casting at every call instead takes a tenth
    of a ViT-S's time at 16 images on a CPU, a twentieth at 64.
    """
    return getattr(value, "_version", None) if enabled() else None


def norms(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the Euclidean norm, a scalar, of each tensor of any shape; by one kernel on a GPU."""
    together = getattr(torch, "_foreach_norm", None) if enabled() else None
    if together is None:
        return [torch.linalg.vector_norm(value) for value in values]
    return together(list(values))  # type: ignore[no-any-return]


def cpu_multiplies_bf16() -> bool:
    """Return whether the processor multiplies bf16 in hardware; False where torch does not say."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None) if enabled() else None
    return bool(supported and supported())
