"""Models near a trained one: its weights under a mask or noise, drawn once a model (arXiv 2402.00728)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Perturbation: TypeAlias = Literal["bernoulli", "gaussian"]
"""w z with z = 0 at a rate, else 1; or w (1 + z) with z normal, whose standard deviation is the rate."""


@contextmanager
def perturbed(
    weights: Sequence[Tensor], kind: Perturbation, rate: float, generator: torch.Generator
) -> Iterator[None]:
    """Return a context in which weights are perturbed: one draw for all of it, so that it is one model.

    Args:
        weights: of any shapes [...]; restored bit for bit at the end.
        kind: of the perturbation.
        rate: 0 leaves the weights as they are.
        generator: on the CPU.
    """
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            if kind == "bernoulli":
                factor = (torch.rand(weight.shape, generator=generator) >= rate).to(weight)
            else:
                factor = 1 + rate * torch.randn(weight.shape, generator=generator).to(weight)
            weight.mul_(factor.to(weight.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
