"""An optimizer's moments by parameter name, so that they outlive the process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from streamcl.protocols import State


def export_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> State:
    """Return copies, as arrays, of the optimizer's state of every named parameter that has been stepped."""
    return {
        name: {
            key: value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else value
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def import_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Any]
) -> None:
    """Replace all state of the optimizer by what `export_moments` returned."""
    optimizer.state.clear()
    for name, moments in state.items():
        like = parameters[name]
        optimizer.state[like] = {key: _tensor(value, like) for key, value in moments.items()}


def drop_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Remove the moments of parameters whose values were drawn anew."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def _tensor(value: Any, like: nn.Parameter) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(value.copy())
    return tensor if tensor.ndim == 0 and not like.is_cuda else tensor.to(like.device)
