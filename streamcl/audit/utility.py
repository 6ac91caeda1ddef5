"""What an erasure costs those who stay: accuracy on held-out samples of what is not erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamcl.audit.held_out import spread_over
from streamcl.events import ForgetRequest, HoldoutPart
from streamcl.protocols import Learner

LOOKED_AT = 48  # samples, so that a request holds the stream up no longer than a batch does


class Utility:
    """Asks a learner for the same few held-out samples before and after an erasure."""

    def __init__(self, parts: Sequence[HoldoutPart]) -> None:
        self._parts = tuple(parts)

    def __call__(self, learner: Learner, request: ForgetRequest) -> Mapping[str, float]:
        """Samples looked at, and the accuracy on them; empty where there are none. Changes nothing."""
        known = set(learner.classes) - {request.label}
        samples = [
            sample
            for sample in spread_over(self._parts, LOOKED_AT)
            if sample.label in known and (request.subject is None or sample.subject != request.subject)
        ]
        if not samples:
            return {}
        guesses = learner.predict(samples)
        right = sum(guess.label == sample.label for guess, sample in zip(guesses, samples, strict=True))
        return {"samples": len(samples), "accuracy": right / len(samples)}
