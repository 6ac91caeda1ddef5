"""Sums of samples, G, Q and counts: taken, added up and taken off, with other columns, and as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.gram import Gram
from streamcl.protocols import State


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a closed form knows of samples: gram [D, D], Q = sum of h^T y, float64 [D, C], counts [C]."""

    gram: Gram
    Q: Tensor
    counts: Tensor

    @property
    def total(self) -> int:
        """How many samples these are."""
        return int(self.counts.sum())

    @property
    def classes(self) -> int:
        """How many columns there are, those without samples included."""
        return len(self.counts)


def nothing(width: int, device: torch.device | str = "cpu", classes: int = 0) -> Statistics:
    """The sums of no samples."""
    Q = torch.zeros(width, classes, dtype=torch.float64, device=device)
    return Statistics(Gram(width, device), Q, torch.zeros(classes, dtype=torch.int64, device=device))


def measured(h: Tensor, targets: Tensor, classes: int) -> Statistics:
    """The sums of samples h [N, D] of targets int64 [N], columns below `classes`."""
    rows = h.detach().double()
    gram = Gram(rows.shape[1], rows.device)
    gram.add(rows)
    Q, counts = sums_by_class(rows, targets, classes)
    return Statistics(gram, Q.contiguous(), counts)


def sums_by_class(rows: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Q [D, C] and counts [C] of rows float64 [N, D] of targets int64 [N]."""
    Q = rows.new_zeros(classes, rows.shape[1]).index_add_(0, targets, rows).T
    return Q, targets.bincount(minlength=classes)


def confirm_fit(rows: Tensor, targets: Tensor, classes: int) -> None:
    """Raises ValueError where rows [N, D] are not finite, or targets not int64 [N], columns that exist."""
    if targets.shape != rows.shape[:1]:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected [{len(rows)}]")
    if len(rows) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"targets must be class columns below {classes}; call grow for a new class")
    if not bool(rows.isfinite().all()):
        raise ValueError("features are not finite")


def combined(one: Statistics, other: Statistics, sign: int = 1) -> Statistics:
    """one + sign * other as sums of their own; the narrower has fewer classes, the first ones."""
    gram = one.gram.copy()
    gram.add_sum(other.gram, sign=sign)
    classes = max(one.classes, other.classes)
    one, other = widened(one, classes), widened(other, classes)
    return Statistics(gram, one.Q + sign * other.Q, one.counts + sign * other.counts)


def widened(sums: Statistics, classes: int) -> Statistics:
    """The sums with so many classes, of the last of which nothing is known."""
    more = classes - sums.classes
    return Statistics(sums.gram, with_more(sums.Q, more), with_more(sums.counts, more)) if more else sums


def with_more(values: Tensor, more: int) -> Tensor:
    """values [..., C + more]: so many zeros behind each row."""
    return torch.cat([values, values.new_zeros(*values.shape[:-1], more)], dim=-1)


def selected(sums: Statistics, columns: Sequence[int]) -> Statistics:
    """The sums with these class columns, in this order; -1 is one of which nothing is known."""
    return Statistics(sums.gram, columns_of(sums.Q, columns), columns_of(sums.counts, columns))


def columns_of(values: Tensor, columns: Sequence[int]) -> Tensor:
    """values [..., len(columns)]: these last-axis entries, in this order; -1 is zero."""
    return with_more(values, 1)[..., torch.tensor(list(columns), dtype=torch.int64, device=values.device)]


def exported(sums: Statistics) -> State:
    """The sums as arrays."""
    arrays = {"Q": sums.Q, "counts": sums.counts}
    plain = {name: array.cpu().numpy().copy() for name, array in arrays.items()}
    return {"gram": sums.gram.state_dict(), **plain}


def imported(state: Mapping[str, Any], width: int, device: torch.device | str) -> Statistics:
    """The sums that were exported, of features of that width."""
    gram = Gram(width, device)
    gram.load_state_dict(state["gram"])
    Q, counts = (torch.tensor(np.asarray(state[name])).to(device) for name in ("Q", "counts"))
    return Statistics(gram, Q, counts)
