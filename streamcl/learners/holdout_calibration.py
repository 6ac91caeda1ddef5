"""Fits a learner's confidences to held-out samples, and predicts these, of which each is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.interfaces import CalibratedScores
from streamcl.errors import BadRecord
from streamcl.events import HoldoutPart, Prediction, Sample
from streamcl.learners.holdout_features import HoldoutFeatures, SampleKey, sample_key, stacked
from streamcl.protocols import Learner

MAX_CALIBRATION_SAMPLES = 256
"""Held-out samples that confidences are fitted to, evenly spread over all: as many as a run holds out by
itself, of which an accuracy is known to three points."""

ListedSample: TypeAlias = tuple[SampleKey, HoldoutPart, int]
"""A held-out sample's key, and its place in its part."""


class HoldoutCalibrator:
    """Fits a learner's confidences to the held-out samples of classes that it knows, and predicts these.

    The fit depends on these samples and the learner's weights alone. Features are kept, without pixels, until
    a sample is held out no more or the learner's features change.

    Args:
        learner: one without the capability `calibration` stays as it is.
        parts: the held-out samples.
        version: gives another number whenever these change.
        max_per_part: samples of a part that are evaluated; None: all. It is fitted to these, so that each is
            read once, where they are enough.
    """

    def __init__(
        self,
        learner: Learner,
        parts: Sequence[HoldoutPart],
        version: Callable[[], int] = lambda: 0,
        *,
        max_per_part: int | None = None,
    ) -> None:
        self._learner, self._parts, self._version = learner, tuple(parts), version
        self._max_per_part = max_per_part
        self._features = HoldoutFeatures()
        self._places: list[ListedSample] = []
        self._listed_at = -1

    @property
    def cached_samples(self) -> int:
        """The number of samples whose features are kept."""
        return len(self._features)

    def fit(self) -> None:
        """Fit the confidences of `predict`."""
        if (calibration := capabilities_of(self._learner).calibration) is not None:
            self._fit(calibration)

    def fit_after_erasure(self) -> bool:
        """Fit again, with nothing left of before; return whether that was possible.

        It is where enough samples are held out, and where the learner's confidences are fitted to nothing.
        """
        if (calibration := capabilities_of(self._learner).calibration) is None:
            return True
        self._fit(calibration)
        self._drop_unlisted()
        calibration.restart()
        return calibration.is_fitted

    def predict(self, samples: Sequence[Sample]) -> Sequence[Prediction]:
        """Return what the learner predicts for held-out samples, bit for bit, from features that are kept."""
        if not samples or (calibration := capabilities_of(self._learner).calibration) is None:
            return self._learner.predict(samples)
        return calibration.predict(self._features.read(samples, calibration))

    def _fit(self, calibration: CalibratedScores) -> None:
        self._features.drop_outdated(calibration)
        known = frozenset(self._learner.classes)
        listed = [each for each in self._listed() if each[0][1] in known]
        missing = [part.samples[at] for key, part, at in listed if key not in self._features]
        if missing:
            self._features.read(missing, calibration, always_keep=True)
        calibration.fit(
            stacked([self._features[key] for key, _, _ in listed]), [label for (_, label, _), _, _ in listed]
        )

    def _listed(self) -> list[ListedSample]:
        """Return the samples that can be read, at most MAX_CALIBRATION_SAMPLES, in order."""
        if self._listed_at != (version := self._version()):
            every = self._evaluated(self._max_per_part)
            if len(every) < MAX_CALIBRATION_SAMPLES // 2:
                every = self._evaluated(None)
            self._places, self._listed_at = [], version
            for part, at in every[:: max(1, -(-len(every) // MAX_CALIBRATION_SAMPLES))]:
                with suppress(BadRecord):
                    self._places.append((sample_key(part.samples[at]), part, at))
            self._drop_unlisted()
        return self._places

    def _evaluated(self, limit: int | None) -> list[tuple[HoldoutPart, int]]:
        return [(part, at) for part in self._parts for at in part.places(limit)]

    def _drop_unlisted(self) -> None:
        """Drop the features of samples that are held out no more, and of others that are not listed."""
        self._features.keep_only({key for key, _, _ in self._places})
