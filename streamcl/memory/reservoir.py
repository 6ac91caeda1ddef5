"""A buffer that is at any time a uniform sample of everything offered so far (Vitter's algorithm R)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamcl.events import Sample
from streamcl.memory.hard_buffer import pack_samples, unpack_samples
from streamcl.protocols import State


class ReservoirItem(NamedTuple):
    """A sample and the logits [C then] that the model gave it when it was offered (none: an empty tensor)."""

    sample: Sample
    logits: Tensor


class Reservoir:
    """At most `capacity` samples; each of the n offered is in it with probability capacity / n.

    All randomness comes from `generator`, which belongs to the learner and to its state.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected 1 or more samples")
        self._capacity = capacity
        self._generator = generator
        self._kept: list[ReservoirItem] = []
        self._offered = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples held."""
        return tuple(kept.sample for kept in self._kept)

    def offer(self, samples: Sequence[Sample], logits: Tensor | None = None) -> None:
        """Accept each sample or not.

        Args:
            samples: N of them.
            logits: [N, C], stored with the samples; None to store none.
        """
        for row, sample in enumerate(samples):
            kept = ReservoirItem(
                sample, torch.zeros(0) if logits is None else logits[row].detach().cpu().clone()
            )
            self._offered += 1
            place = int(torch.randint(self._offered, (1,), generator=self._generator))
            if len(self._kept) < self._capacity:
                self._kept.append(kept)
            elif place < self._capacity:
                self._kept[place] = kept

    def complete(self, completed: Callable[[Sequence[Sample]], Sequence[Sample]]) -> None:
        """Replace the samples by those that `completed` returns for them, with other processes' pixels."""
        samples = completed(self.samples)
        self._kept = [
            ReservoirItem(sample, kept.logits) for sample, kept in zip(samples, self._kept, strict=True)
        ]

    def draw(self, count: int) -> list[ReservoirItem]:
        """Return `count` of the samples held, or all where they are fewer, without repetition."""
        order = torch.randperm(len(self._kept), generator=self._generator)
        return [self._kept[place] for place in order[:count].tolist()]

    def savepoint(self) -> Callable[[], None]:
        """Return a callable that restores the samples, the generator's draws aside."""
        kept, offered = list(self._kept), self._offered

        def undo() -> None:
            self._kept, self._offered = kept, offered

        return undo

    def purge(self, predicate: Callable[[Sample], bool]) -> int:
        """Remove every held sample for which the predicate is true; return their number."""
        before = len(self._kept)
        self._kept = [kept for kept in self._kept if not predicate(kept.sample)]
        return before - len(self._kept)

    @staticmethod
    def without_samples(state: State) -> State:
        """Return the state of a reservoir to which as many samples were offered, and which holds none."""
        empty = Reservoir(1, torch.Generator()).state_dict()
        return {**empty, "offered": state["offered"]}

    def state_dict(self) -> State:
        """Samples with their pixels, logits in one flat array, and how many were offered."""
        logits = [kept.logits.numpy() for kept in self._kept]
        return {
            **pack_samples(self.samples),
            "logits": np.concatenate(logits) if logits else np.zeros(0, np.float32),
            "lengths": np.array([len(each) for each in logits], np.int64),
            "offered": self._offered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the reservoir that returned `state`."""
        flat = torch.from_numpy(np.asarray(state["logits"], np.float32).copy())
        logits = flat.split([int(length) for length in state["lengths"]]) if len(state["lengths"]) else ()
        pairs = zip(unpack_samples(state), logits, strict=True)
        self._kept = [ReservoirItem(sample, values) for sample, values in pairs]
        self._offered = int(state["offered"])
