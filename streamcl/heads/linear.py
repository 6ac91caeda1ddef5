"""The paper's head: one linear layer, trained by gradient, that grows a row for every new class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.protocols import State


class LinearHead(nn.Module):
    """weight [C, d] and bias [C]; begins with no class, and a new class begins at zero."""

    def __init__(self, width: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, width, device=device))
        self.bias = nn.Parameter(torch.zeros(0, device=device))

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.weight.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, d]."""
        return F.linear(features, self.weight, self.bias)

    def grow(self, classes: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Have at least `classes` rows; the old ones keep their values bit by bit, the new ones are zero.

        Growing makes new Parameters. An optimizer that held the old ones holds the new ones afterwards, its
        moments padded with zeros; without one, whoever held the old Parameters must fetch them anew.
        """
        more = classes - self.classes
        if more <= 0:
            return
        for name in ("weight", "bias"):
            old: nn.Parameter = getattr(self, name)
            new = nn.Parameter(padded_rows(old.detach(), more), requires_grad=old.requires_grad)
            setattr(self, name, new)
            if optimizer is not None:
                _swap(optimizer, old, new, lambda value: padded_rows(value, more))

    def drop(self, row: int, optimizer: torch.optim.Optimizer) -> None:
        """Remove a class's row and its moments; later rows move up by one and keep theirs."""
        self._keep([i for i in range(self.classes) if i != row], optimizer)

    def cut(self, classes: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Have no more than `classes` rows, the first ones, with their moments."""
        if classes < self.classes:
            self._keep(list(range(classes)), optimizer)

    def _keep(self, keep: list[int], optimizer: torch.optim.Optimizer | None) -> None:
        for name in ("weight", "bias"):
            old: nn.Parameter = getattr(self, name)
            new = nn.Parameter(old.detach()[keep].clone(), requires_grad=old.requires_grad)
            setattr(self, name, new)
            if optimizer is not None:
                _swap(optimizer, old, new, lambda value: value[keep].clone())

    def export_state(self) -> State:
        """Return weight, float [C, d], and bias, float [C], as numpy arrays."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.named_parameters()}

    def import_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take over exported values, and have as many rows as they do.

        Args:
            state: of `export_state`, for features of the same width.
            optimizer: of this head's Parameters; another number of rows makes new ones, which it then holds.

        Raises:
            ValueError: the values are of features of another width.
        """
        width, classes = self.weight.shape[1], len(state["bias"])
        if state["weight"].shape != (classes, width):
            raise ValueError(f"weight has shape {state['weight'].shape}, expected [{classes}, {width}]")
        self.grow(classes, optimizer)
        self.cut(classes, optimizer)
        for name, parameter in self.named_parameters():
            parameter.data.copy_(torch.tensor(state[name], dtype=parameter.dtype))


def masked_cross_entropy(logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Return the cross entropy [B] in nats of each sample, among the classes that are present only.

    Other classes get no gradient, so they are not pushed down while they are away. With a single class
    present that loss would be zero and teach nothing: then all known classes compete, and it is zero only
    where a single class is known.

    Args:
        logits: [B, C].
        targets: int64 [B], class columns, each one of `present`.
        present: int64 [P], class columns in any order.
    """
    if present.numel() <= 1:
        return F.cross_entropy(logits, targets, reduction="none")
    keep = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    keep[present] = True
    return F.cross_entropy(logits.masked_fill(~keep, float("-inf")), targets, reduction="none")


def padded_rows(values: Tensor, more: int) -> Tensor:
    """Return the values [C + more, ...] with rows of zeros after their own.

    Args:
        values: [C, ...].
        more: the number of rows to append.
    """
    return torch.cat([values, values.new_zeros(more, *values.shape[1:])])


def _swap(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, fit: Callable[[Tensor], Tensor]
) -> None:
    """Let the optimizer hold `new` where it held `old`, its moments fitted to the new shape."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    moments = optimizer.state.pop(old, None)
    if moments is not None:
        optimizer.state[new] = {
            key: fit(value) if torch.is_tensor(value) and value.shape == old.shape else value
            for key, value in moments.items()
        }
