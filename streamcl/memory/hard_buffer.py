"""The hard buffer: the few samples that the learner finds hardest (Online-LoRA, arXiv 2411.05663)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.events import Pixels, Sample
from streamcl.protocols import Rollback, State, savepoint_of


@dataclass(frozen=True, slots=True)
class _Held:
    sample: Sample
    loss: float
    age: int  # how many samples had been offered before this one


class HardBuffer:
    """The `capacity` samples (not batches) with the highest loss among those offered so far.

    Of equal losses the one offered first stays. A sample id is held once: when it is offered again, the new
    loss counts. Samples whose loss is not finite never enter.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity is {capacity}, expected 0 or more samples")
        self.capacity = capacity
        self._held: list[_Held] = []
        self._offered = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The held samples, hardest first."""
        return tuple(held.sample for held in self._held)

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of each held sample when it was last seen, in nats, in the order of `samples`."""
        return tuple(held.loss for held in self._held)

    def update(self, samples: Sequence[Sample], losses: Sequence[float]) -> None:
        """Offer samples with their losses, one each."""
        by_id = {held.sample.id: held for held in self._held}
        for sample, loss in zip(samples, losses, strict=True):
            if math.isfinite(loss):
                by_id[sample.id] = _Held(sample, float(loss), self._offered)
            self._offered += 1
        self._keep_hardest(list(by_id.values()))

    def refresh(self, losses: Sequence[float]) -> None:
        """Take re-evaluated losses, in the order of `samples`; where one is not finite the old one stays."""
        self._keep_hardest(
            [
                replace(held, loss=float(loss)) if math.isfinite(loss) else held
                for held, loss in zip(self._held, losses, strict=True)
            ]
        )

    def complete(self, completed: Callable[[Sequence[Sample]], Sequence[Sample]]) -> None:
        """Replace the samples by those that `completed` returns for them, with other processes' pixels."""
        samples = completed(self.samples)
        self._held = [replace(held, sample=each) for held, each in zip(self._held, samples, strict=True)]

    def savepoint(self) -> Rollback:
        """Return a callable that restores the samples and their losses."""
        return savepoint_of(self, "_held", "_offered")

    def purge(self, predicate: Callable[[Sample], bool]) -> int:
        """Remove every held sample for which the predicate is true; return their number."""
        before = len(self._held)
        self._held = [held for held in self._held if not predicate(held.sample)]
        return before - len(self._held)

    @staticmethod
    def without_samples(state: State) -> State:
        """Return the state of a buffer to which as many samples were offered, and which holds none."""
        return {**HardBuffer(0).state_dict(), "offered": state["offered"]}

    def state_dict(self) -> State:
        """Return samples with their pixels (one flat uint8 array), losses and ages."""
        return {
            "losses": np.array(self.losses, np.float64),
            "ages": np.array([held.age for held in self._held], np.int64),
            "offered": self._offered,
            **pack_samples(self.samples),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the buffer that returned `state`; more samples than the capacity are cut to the hardest."""
        self._offered = int(state["offered"])
        self._keep_hardest(
            [
                _Held(sample, float(loss), int(age))
                for sample, loss, age in zip(
                    unpack_samples(state), state["losses"], state["ages"], strict=True
                )
            ]
        )

    def _keep_hardest(self, candidates: list[_Held]) -> None:
        candidates.sort(key=lambda held: (-held.loss, held.age))
        self._held = candidates[: self.capacity]


_FIELDS = ("id", "label", "subject", "domain", "privacy")


def pack_samples(samples: Sequence[Sample]) -> State:
    """Return samples as plain data: all pixels in one flat uint8 array, their shapes, and a list a field."""
    pixels = [sample.image.reshape(-1) for sample in samples]
    return {
        "pixels": np.concatenate(pixels) if pixels else np.zeros(0, np.uint8),
        "shapes": np.array([sample.image.shape for sample in samples], np.int64).reshape(-1, 3),
        **{name: [getattr(sample, name) for sample in samples] for name in _FIELDS},
    }


def unpack_samples(state: Mapping[str, Any]) -> list[Sample]:
    """Return the samples that were packed into `state`; other keys are ignored."""
    images = _split(np.asarray(state["pixels"], np.uint8), np.asarray(state["shapes"], np.int64))
    fields = zip(*(state[name] for name in _FIELDS), strict=True)
    return [
        Sample(image=image, **dict(zip(_FIELDS, values, strict=True)))
        for image, values in zip(images, fields, strict=True)
    ]


def _split(pixels: Pixels, shapes: npt.NDArray[np.int64]) -> list[Pixels]:
    ends = np.cumsum(shapes.prod(axis=1))
    parts = np.split(pixels, ends[:-1]) if len(shapes) else []
    return [part.reshape(shape).copy() for part, shape in zip(parts, shapes, strict=True)]
