"""A running sum of outer products in float64, held as the lower triangle in block columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from streamcl.protocols import State

_BLOCK = 512  # columns; at D = 3840 a batch of 64 costs 0.6, and a checkpoint 0.57, of the full matrix


class Gram:
    """G = sum of h^T h over rows h, [D, D], symmetric; added with sign -1, rows are taken out again."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self._blocks = [
            torch.zeros(width - start, min(_BLOCK, width - start), dtype=torch.float64, device=device)
            for start in range(0, width, _BLOCK)
        ]

    def add(self, rows: Tensor, sign: float = 1.0) -> None:
        """Add sign * rows^T rows; rows float64 [N, D]."""
        for start, block in self._starts():
            columns = rows[:, start : start + block.shape[1]]  # [N, b]
            block.addmm_(rows[:, start:].T, columns, alpha=sign)

    def add_sum(self, other: Gram, sign: float = 1.0) -> None:
        """Add sign times another sum of the same width."""
        for block, theirs in zip(self._blocks, other._blocks, strict=True):
            block.add_(theirs, alpha=sign)

    def copy(self) -> Gram:
        """An independent sum with the same values."""
        twin = Gram(0)
        twin.width = self.width
        twin._blocks = [block.clone() for block in self._blocks]
        return twin

    @property
    def trace(self) -> float:
        """Sum of the squares of everything that was added."""
        return sum(float(block[: block.shape[1]].trace()) for block in self._blocks)

    def diagonal(self) -> Tensor:
        """[D]: the sums of the squares of each column."""
        return torch.cat([block[: block.shape[1]].diagonal() for block in self._blocks])

    @property
    def largest(self) -> float:
        """The largest absolute entry."""
        return max((float(block.abs().max()) for block in self._blocks), default=0.0)

    def lower(self, ridge: float = 0.0) -> Tensor:
        """G + ridge * I as a fresh [D, D] of which only the lower triangle is to be read."""
        full = torch.zeros(self.width, self.width, dtype=torch.float64, device=self._device)
        for start, block in self._starts():
            full[start:, start : start + block.shape[1]] = block
        full.diagonal().add_(ridge)
        return full

    def full(self) -> Tensor:
        """G itself, [D, D]."""
        lower = self.lower()
        return lower.tril() + lower.tril(-1).T

    def state_dict(self) -> State:
        """The block columns, by index."""
        return {str(i): block.cpu().numpy().copy() for i, block in enumerate(self._blocks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the sum that returned `state`, of the same width."""
        device = self._device
        for i, block in enumerate(self._blocks):
            if tuple(state[str(i)].shape) != tuple(block.shape):
                raise ValueError(
                    f"block {i} has shape {tuple(state[str(i)].shape)}, expected {tuple(block.shape)}"
                )
        self._blocks = [torch.tensor(state[str(i)], device=device) for i in range(len(self._blocks))]

    @property
    def _device(self) -> torch.device:
        return self._blocks[0].device

    def _starts(self) -> list[tuple[int, Tensor]]:
        return [(i * _BLOCK, block) for i, block in enumerate(self._blocks)]
