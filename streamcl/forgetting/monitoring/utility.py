"""The utility cost of an erasure: accuracy on held-out samples of what is not erased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import StreamclError
from streamcl.events import NO_PIXELS, ForgetRequest, HoldoutPart, Sample
from streamcl.forgetting.monitoring.held_out import sample_evenly
from streamcl.protocols import Learner

CorrectFlags: TypeAlias = npt.NDArray[np.bool_]

MAX_SAMPLES = 48  # so that a request holds the stream up no longer than a batch does


class UtilityProbe:
    """Evaluates a learner on the same few held-out samples before and after an erasure.

    What a learner with cached features reads of them is stored from one request to the next, features and no
    pixels, until a subject is erased who is among them, or `version` gives another number: the held-out
    samples are others then.
    """

    def __init__(self, parts: Sequence[HoldoutPart], version: Callable[[], int] = lambda: 0) -> None:
        self._parts, self._version = tuple(parts), version
        self._read_at = version()
        self._samples: _HeldOut | None = None

    def prepare(self, learner: Learner) -> None:
        """Read the samples now, so that the first request need not; that reports what cannot be read."""
        with suppress(StreamclError):
            self._read(learner)

    def before(self, learner: Learner, request: ForgetRequest) -> UtilityBaseline:
        """Return which samples of what stays the learner classifies correctly now; change nothing."""
        seen = self._read(learner)
        subject = request.subject if request.kind == "subject" else None
        if subject is not None and any(each.subject == subject for each in seen.samples):
            self._samples = None
        seen = seen.without(request)
        return UtilityBaseline(seen, seen.correct(learner))

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

    def correct(self, learner: Learner) -> CorrectFlags:
        """Return bool [N]: which samples are classified correctly."""
        if not self.samples or not learner.classes:
            return np.zeros(len(self.samples), dtype=bool)
        cached = capabilities_of(learner).cached_features
        if self.reading is not None and cached is not None:
            columns = cached.scores(self.reading).argmax(dim=1).tolist()
            named: list[str | None] = [learner.classes[column] for column in columns]
        else:
            named = [each.label for each in learner.predict(self.samples)]
        return np.array([name == sample.label for name, sample in zip(named, self.samples, strict=True)])


@dataclass(frozen=True, slots=True, eq=False)
class UtilityBaseline:
    """Which held-out samples a learner classified correctly before an erasure, bool [N]."""

    held_out: _HeldOut
    before: CorrectFlags

    def after(self, learner: Learner) -> dict[str, float] | None:
        """Return accuracy before and after on samples of classes still known; None where there are none."""
        known = np.array([sample.label in learner.classes for sample in self.held_out.samples], dtype=bool)
        if not known.any():
            return None
        now = self.held_out.correct(learner)
        return {
            "samples": int(known.sum()),
            "before": float(self.before[known].mean()),
            "after": float(now[known].mean()),
        }
