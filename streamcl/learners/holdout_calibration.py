"""Fits a learner's confidences to held-out samples, of which each is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.interfaces import CalibratedScores
from streamcl.errors import BadRecord
from streamcl.events import HoldoutPart
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.protocols import Learner

with lazy_imports():
    import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_CALIBRATION_SAMPLES = 256
"""Held-out samples that are read, evenly spread over all: as many as a run holds out by itself, of which an
accuracy is known to three points."""
CALIBRATION_BATCH = 64
"""Samples, as many as a batch has."""

SampleKey: TypeAlias = tuple[str, str, int]
"""Id, label, and how many samples before it have both."""


class HoldoutCalibrator:
    """Fits a learner's confidences to the held-out samples of classes that it knows.

    The fit depends on these samples and the learner's weights alone. Features are kept, without pixels, until
    a sample is held out no more or the learner's features change.

    Args:
        learner: one without the capability `calibration` stays as it is.
        parts: the held-out samples.
        version: gives another number whenever these change.
    """

    def __init__(
        self, learner: Learner, parts: Sequence[HoldoutPart], version: Callable[[], int] = lambda: 0
    ) -> None:
        self._learner, self._parts, self._version = learner, tuple(parts), version
        self._features: dict[SampleKey, tuple[Tensor, ...]] = {}
        self._features_version: object = None
        self._places: dict[SampleKey, tuple[HoldoutPart, int]] = {}
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
        calibration.restart()
        return calibration.is_fitted

    def _fit(self, calibration: CalibratedScores) -> None:
        if self._features_version != calibration.features_version:
            self._features, self._features_version = {}, calibration.features_version
        known = frozenset(self._learner.classes)
        places = {key: place for key, place in self._listed().items() if key[1] in known}
        self._features = {key: rows for key, rows in self._features.items() if key in places}
        missing = [key for key in places if key not in self._features]
        for start in range(0, len(missing), CALIBRATION_BATCH):
            keys = missing[start : start + CALIBRATION_BATCH]
            tensors = calibration.read([part.samples[at] for part, at in map(places.__getitem__, keys)])
            for key, *rows in zip(keys, *tensors, strict=True):
                self._features[key] = tuple(row.clone() for row in rows)  # or a chunk would stay in memory
        columns = zip(*(self._features[key] for key in places), strict=True)
        calibration.fit(tuple(torch.stack(rows) for rows in columns), [label for _, label, _ in places])

    def _listed(self) -> dict[SampleKey, tuple[HoldoutPart, int]]:
        """Return the places of the samples that can be read, at most MAX_CALIBRATION_SAMPLES, in order."""
        if self._listed_at != (version := self._version()):
            every = [(part, place) for part in self._parts for place in range(len(part.samples))]
            self._places, self._listed_at, seen = {}, version, Counter[tuple[str, str]]()
            for part, place in every[:: max(1, -(-len(every) // MAX_CALIBRATION_SAMPLES))]:
                with suppress(BadRecord):
                    sample = part.samples[place]
                    name = sample.id, str(sample.label)
                    self._places[*name, seen[name]] = part, place
                    seen[name] += 1
        return self._places
