"""Tokens of learned samples, some of which are drawn for each step (latent replay, arXiv 1912.01100)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamcl.events import Sample
from streamcl.memory.latent_store import LatentStore
from streamcl.memory.token_rows import TokenRows
from streamcl.protocols import Rollback, State, savepoint_of


class StoredBatch(NamedTuple):
    """H stored samples: their tokens, float32 [H, N, d], and the names of their classes."""

    tokens: Tensor
    labels: tuple[str, ...]


class LatentReplay:
    """A bounded share of a stream's samples, by their tokens where the adapted blocks begin.

    A sample is in the store where a keyed hash of its id lies under a share that is 1 at first, and half as
    much each time that the position in the stream has outgrown it. So the store holds between half of `rows`
    and all of them, in expectation, spread evenly over the stream.

    Args:
        store: of the tokens, empty.
        rows: samples for which there is room.
    """

    def __init__(self, store: LatentStore, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}, expected 1 or more samples")
        self._store, self._rows = store, rows
        self._weight = 1  # the inverse of the share

    def __len__(self) -> int:
        return len(self._store)

    def draw(self, count: int, generator: torch.Generator) -> StoredBatch | None:
        """Return `count` of the samples, or all where they are fewer; none twice. None of an empty store.

        Args:
            count: samples that are wanted.
            generator: decides which.
        """
        if not len(self):
            return None
        order = torch.randperm(len(self), generator=generator)[:count].numpy()
        ends = np.cumsum([len(group) for group in self._store.groups])
        of_group = np.searchsorted(ends, order, side="right")
        parts = []
        for number in np.unique(of_group).tolist():
            group = self._store.groups[number]
            parts.append(group.select(order[of_group == number] - (ends[number] - len(group))))
        tokens = TokenRows.concat([part.tokens for part in parts]).restored()
        return StoredBatch(torch.from_numpy(tokens), tuple(label for part in parts for label in part.labels))

    def offer(self, tokens: Tensor, samples: Sequence[Sample], offsets: Sequence[int]) -> None:
        """Store those of a batch's samples whose place it is.

        Args:
            tokens: [n, N, d].
            samples: n labelled ones.
            offsets: their n places in the stream, rising.
        """
        weight = self._weight
        while self._rows * weight <= offsets[-1]:
            weight *= 2
        if weight > self._weight:
            self._store.thin(1 / weight, trainings=0, weight=weight)
            self._weight = weight
        places = [self._store.place(sample.id) for sample in samples]
        rows = [row for row, place in enumerate(places) if place < 1 / weight]
        if rows:
            self._store.add(
                tokens[rows].detach().float().cpu().numpy(),
                [str(samples[row].label) for row in rows],
                [offsets[row] for row in rows],
                [places[row] for row in rows],
                trainings=0,
                weight=weight,
            )

    def remove(self, offsets: Collection[int]) -> int:
        """Remove the samples at these offsets; return how many of them were stored."""
        return len(self._store.remove(offsets))

    def savepoint(self) -> Rollback:
        """Return a callable that restores what is stored."""
        return savepoint_of(self, "_weight", parts=(savepoint_of(self._store, "groups"),))

    def state_dict(self) -> State:
        """Return the tokens with labels and offsets, and the share that is stored."""
        return {"store": self._store.state_dict(), "weight": self._weight}

    @staticmethod
    def without_tokens(state: State) -> State:
        """Return such a state with all but the tokens, from which nothing can be drawn."""
        return {**state, "store": LatentStore.without_tokens(state["store"])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what the replay held that returned `state`."""
        self._store.load_state_dict(state["store"])
        self._weight = int(state["weight"])
