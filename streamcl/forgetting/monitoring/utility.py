"""The utility cost of an erasure: accuracy on held-out samples of what is not erased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import StreamclError
from streamcl.events import NO_PIXELS, ForgetRequest, HoldoutPart, Sample
from streamcl.forgetting.monitoring.held_out import sample_evenly
from streamcl.protocols import Learner

PredictedClasses: TypeAlias = list[str | None]

MAX_SAMPLES = 48  # so that a request holds the stream up no longer than a batch does


class UtilityProbe:
    """Evaluates a learner on the same few held-out samples before and after an erasure.

    What a learner with cached features reads of them is stored from one request to the next, features and no
    pixels, until a subject is erased who is among them, or `version` gives another number: the held-out
    samples are others then.

    Args:
        parts: the held-out samples.
        version: returns another number once they are others.
        expects_changes: also compute how many predictions an erasure was expected to change.
    """

    def __init__(
        self,
        parts: Sequence[HoldoutPart],
        version: Callable[[], int] = lambda: 0,
        *,
        expects_changes: bool = False,
    ) -> None:
        self._parts, self._version, self._expects = tuple(parts), version, expects_changes
        self._read_at = version()
        self._samples: _HeldOut | None = None

    def prepare(self, learner: Learner) -> None:
        """Read the samples now, so that the first request need not; that reports what cannot be read."""
        with suppress(StreamclError):
            self._read(learner)

    def before(self, learner: Learner, request: ForgetRequest) -> UtilityBaseline:
        """Return how the learner classifies samples of what stays now; change nothing."""
        seen = self._read(learner)
        subject = request.subject if request.kind == "subject" else None
        if subject is not None and any(each.subject == subject for each in seen.samples):
            self._samples = None
        seen = seen.without(request)
        return UtilityBaseline(seen, seen.classify(learner), self._expects)

    def _read(self, learner: Learner) -> _HeldOut:
        cached = capabilities_of(learner).cached_features
        if self._read_at != self._version():
            self._samples, self._read_at = None, self._version()
        if self._samples is not None and cached is not None:
            self._samples = replace(self._samples, reading=cached.refresh_features(self._samples.reading))
            return self._samples
        samples = [sample for sample in sample_evenly(self._parts, MAX_SAMPLES) if sample.label is not None]
        if cached is None:
            return _HeldOut([sample for sample in samples if sample.label in learner.classes], None)
        if samples:
            without_pixels = [replace(sample, image=NO_PIXELS) for sample in samples]
            self._samples = _HeldOut(without_pixels, cached.read(samples))
        return self._samples or _HeldOut((), None)


@dataclass(frozen=True, slots=True, eq=False)
class _HeldOut:
    """Held-out samples, and what a learner with cached features reads of them; of any other learner None."""

    samples: Sequence[Sample]
    reading: Any

    def without(self, request: ForgetRequest) -> _HeldOut:
        """Return those of other classes and subjects than the request's."""
        rows = [
            row
            for row, sample in enumerate(self.samples)
            if sample.label != request.label
            and (request.kind != "subject" or request.all_users or sample.subject != request.subject)
        ]
        return _HeldOut(
            [self.samples[row] for row in rows], None if self.reading is None else self.reading[rows]
        )

    def classify(self, learner: Learner) -> PredictedClasses:
        """Return the class that the learner names for each sample."""
        if not self.samples or not learner.classes:
            return [None] * len(self.samples)
        cached = capabilities_of(learner).cached_features
        if self.reading is not None and cached is not None:
            columns = cached.scores(self.reading).argmax(dim=1).tolist()
            return [learner.classes[column] for column in columns]
        return [each.label for each in learner.predict(self.samples)]


@dataclass(frozen=True, slots=True, eq=False)
class UtilityBaseline:
    """The classes that a learner named for held-out samples before an erasure."""

    held_out: _HeldOut
    before: PredictedClasses
    expects_changes: bool

    def after(self, learner: Learner, erased: int) -> dict[str, float] | None:
        """Return accuracy before and after, and how many predictions have changed and were expected to.

        Of samples of classes still known; None where there are none. erased: how many samples were.
        """
        rows = zip(self.held_out.samples, self.before, self.held_out.classify(learner), strict=True)
        known = [(each.label, before, now) for each, before, now in rows if each.label in learner.classes]
        if not known:
            return None
        expected = self._expected_changes(learner, erased) if self.expects_changes else None
        return {
            **({} if expected is None else {"expected_changed": expected}),
            "samples": len(known),
            "before": float(np.mean([before == label for label, before, _ in known])),
            "after": float(np.mean([now == label for label, _, now in known])),
            "changed": sum(before != now for _, before, now in known),
        }

    def _expected_changes(self, learner: Learner, erased: int) -> float | None:
        """Return the expected number, of samples of classes still known; None where it cannot be computed."""
        assessment = capabilities_of(learner).assessment
        if assessment is None or self.held_out.reading is None:
            return None
        chances: list[float] = assessment.change_probabilities(self.held_out.reading, erased).tolist()
        pairs = zip(self.held_out.samples, chances, strict=True)
        return sum(chance for sample, chance in pairs if sample.label in learner.classes)
