"""The utility cost of an erasure: accuracy on held-out samples of what is not erased."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import StreamclError
from streamcl.events import NO_PIXELS, ForgetRequest, HoldoutPart, Sample
from streamcl.forgetting.monitoring.held_out import spread_over
from streamcl.protocols import Learner

Flags: TypeAlias = npt.NDArray[np.bool_]

LOOKED_AT = 48  # samples, so that a request holds the stream up no longer than a batch does


class Utility:
    """Asks a learner for the same few held-out samples before and after an erasure.

    What a steady learner reads of them is kept from one request to the next, features and no pixels, until
    a subject is erased who is among them.
    """

    def __init__(self, parts: Sequence[HoldoutPart]) -> None:
        self._parts = tuple(parts)
        self._seen: _Seen | None = None

    def prepare(self, learner: Learner) -> None:
        """Read the samples now, so that the first request need not. What cannot be read is told of there."""
        with suppress(StreamclError):
            self._look(learner)

    def __call__(self, learner: Learner, request: ForgetRequest) -> UtilityBefore:
        """Return what the learner gets right of what stays, by the weights in use; change nothing."""
        seen = self._look(learner)
        subject = request.subject if request.kind == "subject" else None
        if subject is not None and any(each.subject == subject for each in seen.samples):
            self._seen = None
        seen = seen.without(request)
        return UtilityBefore(seen, seen.right(learner))

    def _look(self, learner: Learner) -> _Seen:
        cached = capabilities_of(learner).cached_features
        if self._seen is not None and cached is not None:
            self._seen = replace(self._seen, reading=cached.refresh_features(self._seen.reading))
            return self._seen
        samples = [sample for sample in spread_over(self._parts, LOOKED_AT) if sample.label is not None]
        if cached is None:
            return _Seen([sample for sample in samples if sample.label in learner.classes], None)
        if samples:
            without_pixels = [replace(sample, image=NO_PIXELS) for sample in samples]
            self._seen = _Seen(without_pixels, cached.read(samples))
        return self._seen or _Seen((), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Held-out samples, and what a steady learner reads of them; of any other learner None."""

    samples: Sequence[Sample]
    reading: Any

    def without(self, request: ForgetRequest) -> _Seen:
        """Those of other classes and subjects than the request's."""
        rows = [
            row
            for row, sample in enumerate(self.samples)
            if sample.label != request.label
            and (request.kind != "subject" or request.all_users or sample.subject != request.subject)
        ]
        return _Seen(
            [self.samples[row] for row in rows], None if self.reading is None else self.reading[rows]
        )

    def right(self, learner: Learner) -> Flags:
        """bool [N]: which samples are named right."""
        if not self.samples or not learner.classes:
            return np.zeros(len(self.samples), dtype=bool)
        cached = capabilities_of(learner).cached_features
        if self.reading is not None and cached is not None:
            columns = cached.scores(self.reading).argmax(dim=1).tolist()
            named: list[str | None] = [learner.classes[column] for column in columns]
        else:
            named = [guess.label for guess in learner.predict(self.samples)]
        return np.array([name == sample.label for name, sample in zip(named, self.samples, strict=True)])


@dataclass(frozen=True, slots=True, eq=False)
class UtilityBefore:
    """Which held-out samples a learner named right before an erasure, bool [N]."""

    seen: _Seen
    before: Flags

    def beside(self, learner: Learner) -> dict[str, float] | None:
        """Accuracy then and now on the samples whose class is still known, and their number; None of none."""
        known = np.array([sample.label in learner.classes for sample in self.seen.samples], dtype=bool)
        if not known.any():
            return None
        now = self.seen.right(learner)
        return {
            "samples": int(known.sum()),
            "before": float(self.before[known].mean()),
            "after": float(now[known].mean()),
        }
