"""What an erasure costs those who stay: accuracy on held-out samples of what is not erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from streamcl.audit.held_out import spread_over
from streamcl.audit.material import Flags
from streamcl.events import ForgetRequest, HoldoutPart, Sample
from streamcl.protocols import Learner

LOOKED_AT = 48  # samples, so that a request holds the stream up no longer than a batch does


@runtime_checkable
class Steady(Protocol):
    """A learner whose features of a sample no erasure changes, so that one look at the pixels will do."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known."""
        ...

    def read(self, samples: Sequence[Sample]) -> Any:
        """All that `scores` needs of samples, one or more."""
        ...

    def scores(self, reading: Any) -> Any:
        """A tensor [B, C] by the weights in use."""
        ...


class Utility:
    """Asks a learner for the same few held-out samples before and after an erasure."""

    def __init__(self, parts: Sequence[HoldoutPart]) -> None:
        self._parts = tuple(parts)

    def __call__(self, learner: Learner, request: ForgetRequest) -> Useful:
        """What the learner gets right of what stays, by the weights in use; changes nothing."""
        known = set(learner.classes) - {request.label}
        samples = [
            sample
            for sample in spread_over(self._parts, LOOKED_AT)
            if sample.label in known and (request.subject is None or sample.subject != request.subject)
        ]
        reading = learner.read(samples) if samples and isinstance(learner, Steady) else None
        return Useful(samples, reading, _right(learner, samples, reading))


@dataclass(frozen=True, slots=True, eq=False)
class Useful:
    """What a learner got right: bool [N], of these samples, and what was read of them where that stays."""

    samples: Sequence[Sample]
    reading: Any
    right: Flags

    def beside(self, learner: Learner) -> dict[str, float] | None:
        """Accuracy then and now on the samples whose class is still known, and their number; None of none."""
        known = np.array([sample.label in learner.classes for sample in self.samples], dtype=bool)
        if not known.any():
            return None
        now = _right(learner, self.samples, self.reading)
        return {
            "samples": int(known.sum()),
            "before": float(self.right[known].mean()),
            "after": float(now[known].mean()),
        }


def _right(learner: Learner, samples: Sequence[Sample], reading: Any) -> Flags:
    """bool [N]: which samples are named right."""
    if not samples or not learner.classes:
        return np.zeros(len(samples), dtype=bool)
    if reading is not None and isinstance(learner, Steady):
        columns = learner.scores(reading).argmax(dim=1).tolist()
        named: list[str | None] = [learner.classes[column] for column in columns]
    else:
        named = [guess.label for guess in learner.predict(samples)]
    return np.array([name == sample.label for name, sample in zip(named, samples, strict=True)])
