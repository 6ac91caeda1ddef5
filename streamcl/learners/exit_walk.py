"""Samples on their way from exit to exit of a backbone, each as far as it was advanced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class WalkRows:
    """Samples at the same exit.

    places: int64 [n], in the request. tokens: [n, N, d] of each view, that enter the next block. branch:
    [n, N, d] of the first view where an adapted branch begins, once that is reached. features: [n, F].
    """

    places: Tensor
    tokens: list[Tensor]
    branch: list[Tensor]
    features: Tensor

    def __getitem__(self, rows: Tensor) -> WalkRows:
        tokens, branch = ([each[rows] for each in views] for views in (self.tokens, self.branch))
        return WalkRows(self.places[rows], tokens, branch, self.features[rows])

    def concatenated(self, other: WalkRows) -> WalkRows:
        """Return these samples, then those of `other` at the same exit."""
        tokens, branch = (
            [torch.cat(pair) for pair in zip(mine, theirs, strict=True)]
            for mine, theirs in ((self.tokens, other.tokens), (self.branch, other.branch))
        )
        places, features = torch.cat([self.places, other.places]), torch.cat([self.features, other.features])
        return WalkRows(places, tokens, branch, features)


class ExitModel(Protocol):
    """Runs a group of blocks, and gives the scores at its end."""

    def advanced(self, rows: WalkRows, number: int) -> WalkRows:
        """Return the rows after the group of blocks that ends at exit `number`."""

    def scores_at(self, rows: WalkRows, number: int) -> Tensor:
        """Return the scores [n, C] of rows at exit `number`."""

    def logits_of(self, scores: Tensor) -> Tensor:
        """Return the logits [n, C] of scores [n, C]."""


class ExitWalk:
    """The samples of one request.

    Attributes:
        exits: int64 [N], the last exit that each sample came to; -1 before the first.
        margins: float64 [N], of the two best scores there; NaN before the first.
        logits: [N, C] from there; empty before the first.
    """

    def __init__(self, model: ExitModel, rows: WalkRows) -> None:
        count = len(rows.places)
        self.exits = torch.full((count,), -1)
        self.margins = torch.full((count,), math.nan, dtype=torch.float64)
        self.logits = torch.empty(0)
        self._model, self._waiting = model, {-1: rows}

    def advance(self, places: Tensor) -> None:
        """Take samples at the same exit to the next one.

        Args:
            places: int64 [n], one or more, in the request.
        """
        number = int(self.exits[places[0]]) + 1
        rows = self._model.advanced(self._taken(number - 1, places), number)
        scores = self._model.scores_at(rows, number)
        if not self.logits.numel():
            self.logits = scores.new_empty(len(self.exits), scores.shape[1])
        self.logits[rows.places] = self._model.logits_of(scores)
        self.margins[rows.places] = _margin(scores).cpu()
        self.exits[rows.places] = number
        others = self._waiting.get(number)
        self._waiting[number] = rows if others is None else others.concatenated(rows)

    def _taken(self, number: int, places: Tensor) -> WalkRows:
        """Remove these samples from those at an exit, and return them."""
        waiting = self._waiting.pop(number)
        if len(waiting.places) == len(places):
            return waiting
        chosen = torch.isin(waiting.places, places)
        self._waiting[number] = waiting[~chosen]
        return waiting[chosen]


def _margin(scores: Tensor) -> Tensor:
    """Return by how much the best score exceeds the second, float64 [N]; infinity without a second."""
    if scores.shape[1] < 2:
        return scores.new_full((len(scores),), math.inf, dtype=torch.float64)
    best, second = scores.double().topk(2, dim=1).values.unbind(dim=1)
    return (best - second).nan_to_num(nan=math.inf, posinf=math.inf)
