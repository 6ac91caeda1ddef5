"""Groups of parameters that reach exactly zero together: descent with a proximal step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ParameterGroup = Sequence[Tensor]
"""Parameters whose entries share one norm, the root of the sum of all their squares."""


def norm(group: ParameterGroup) -> float:
    """The group's norm."""
    return float(torch.stack([p.detach().double().square().sum() for p in group]).sum().sqrt())


@torch.no_grad()
def shrink(group: ParameterGroup, amount: float) -> None:
    """Soft thresholding: the group's norm falls by `amount`, and to exactly zero where it was no larger.

    The proximal step of amount * norm (arXiv 1012.2518, section 2.2). There is no root to differentiate, so
    nothing becomes NaN at zero, and no epsilon keeps a group from it.
    """
    size = norm(group)
    keep = 0.0 if size <= amount else 1.0 - amount / size
    for parameter in group:
        parameter.mul_(keep) if keep else parameter.zero_()


class ProximalDescent:
    """Descent with momentum, the steepest step of a set length over all groups together, then `shrink`.

    One scale for all, unlike Adam, which moves every entry alike whether its gradient matters or not: so a
    group that gains little moves less than it is shrunk and stays at zero. The scale is that of the largest
    gradient so far, so steps grow shorter as the goal comes near.
    """

    def __init__(self, groups: Sequence[ParameterGroup], *, momentum: float = 0.9) -> None:
        self._groups = groups
        self._momentum = momentum
        self._mean = [[torch.zeros_like(p) for p in group] for group in groups]
        self._largest = 0.0

    @torch.no_grad()
    def step(self, gradients: Sequence[ParameterGroup], length: float, threshold: float) -> None:
        """Move by up to `length` against the mean of recent gradients, then shrink by `threshold`."""
        scale = self._momentum
        self._largest = max(self._largest, norm([p for group in gradients for p in group]))
        for mean, group in zip(self._mean, gradients, strict=True):
            for running, gradient in zip(mean, group, strict=True):
                running.mul_(scale).add_(gradient, alpha=1 - scale)
        for group, mean in zip(self._groups, self._mean, strict=True):
            for parameter, running in zip(group, mean, strict=True):
                parameter.sub_(running, alpha=length / self._largest if self._largest else 0.0)
            shrink(group, threshold)
