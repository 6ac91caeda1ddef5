"""Parameter importance from the hard buffer and the penalty it makes (Online-LoRA, arXiv 2411.05663)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from streamcl.protocols import State


def squared_gradients(
    loss_of: Callable[[int], Tensor], count: int, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return by name the mean over samples of the squared gradient of each sample's negative log-likelihood.

    One gradient a sample is squared, then averaged; the square of the mean gradient would be near zero at an
    optimum. Samples whose gradient is not finite are left out; zeros where none is left. Touches no `.grad`.

    Args:
        loss_of: returns the scalar loss of sample i as a function of the parameters.
        count: the number of samples, i from 0 to count - 1.
        parameters: by name, of any shape.
    """
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    used = 0
    for i in range(count):
        gradients = torch.autograd.grad(
            loss_of(i), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        if all(bool(g.isfinite().all()) for g in gradients):
            used += 1
            for name, g in zip(total, gradients, strict=True):
                total[name] += g**2
    return {name: value / max(used, 1) for name, value in total.items()}


class Importance:
    """Omega: the running mean, over consolidations, of squared gradients; one entry per parameter entry."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, device: torch.device | str = "cpu") -> None:
        self._omega = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self._consolidations = 0

    @property
    def consolidations(self) -> int:
        """The number of consolidations that the mean is over."""
        return self._consolidations

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Omega by parameter name. Not to be written to."""
        return self._omega

    def update(self, squared: Mapping[str, Tensor]) -> None:
        """Add squared gradients, by name, to the mean; raise ValueError where one is not finite."""
        for name, value in squared.items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"the squared gradient of {name} is not finite")
        self._consolidations += 1
        for name, omega in self._omega.items():
            omega.add_((squared[name].to(omega) - omega) / self._consolidations)

    def penalty(self, parameters: Mapping[str, Tensor], strength: float) -> Tensor:
        """Return strength / 2 * sum of Omega * theta^2, a scalar with gradients to the parameters.

        Args:
            parameters: theta by name, each of its Omega's shape.
            strength: lambda, zero or more.
        """
        if not self._consolidations:
            return torch.zeros(())
        terms = [(omega * parameters[name] ** 2).sum() for name, omega in self._omega.items()]
        return strength / 2 * torch.stack(terms).sum() if terms else torch.zeros(())

    def clear(self) -> None:
        """Set Omega to zero, as before the first consolidation."""
        self._consolidations = 0
        for omega in self._omega.values():
            omega.zero_()

    def state_dict(self) -> State:
        """Return Omega by name, and the number of consolidations."""
        return {
            "consolidations": self._consolidations,
            "omega": {name: omega.cpu().numpy().copy() for name, omega in self._omega.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the importance that returned `state`, over the same parameters."""
        if (names := set(state["omega"])) != set(self._omega):
            raise ValueError(f"importance of {sorted(names)}, expected of {sorted(self._omega)}")
        for name, omega in self._omega.items():
            omega.copy_(torch.tensor(state["omega"][name]))
        self._consolidations = int(state["consolidations"])
