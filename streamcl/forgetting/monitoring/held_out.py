"""Held-out samples by class and subject, to test erasures without keeping data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

from streamcl.errors import BadRecord
from streamcl.events import HoldoutPart, Sample
from streamcl.forgetting.methods.retain_set import subsample

MAX_PER_NAME = 48
"""Samples of one class or subject in a test, so that it takes no longer than a batch."""
MAX_OTHERS = 96
"""Samples of the others, twice as many: a smaller standard error at little cost."""

Named: TypeAlias = Literal["class", "subject"]
Place: TypeAlias = tuple[int, int]


class HeldOutSamples:
    """Indexes held-out samples by class and subject; pixels are read from the source at each call.

    The index reads all of them once, at the first call, and again where `version` gives another number.
    """

    def __init__(self, parts: Sequence[HoldoutPart], version: Callable[[], int] = lambda: 0) -> None:
        self._parts, self._version = tuple(parts), version
        self._indexed = version()
        self._places: dict[tuple[Named, str], list[Place]] | None = None
        self._all: list[tuple[Place, str | None, str | None]] = []

    def of(self, kind: Named, name: str) -> list[Sample]:
        """Return at most MAX_PER_NAME samples of the class or subject, spread evenly."""
        return list(_read(self._parts, subsample(self._index().get((kind, name), []), MAX_PER_NAME)))

    def names(self, kind: Named) -> list[str]:
        """Return the classes or subjects with held-out samples."""
        return [name for each, name in self._index() if each == kind]

    def others(self, is_erased: Callable[[Named, str], bool]) -> list[Sample]:
        """Return at most MAX_OTHERS samples of classes and subjects that were not erased."""
        gone = {key for key in self._index() if is_erased(*key)}
        places = [
            place
            for place, label, subject in self._all
            if ("class", label) not in gone and ("subject", subject) not in gone
        ]
        return list(_read(self._parts, subsample(places, MAX_OTHERS)))

    def _index(self) -> dict[tuple[Named, str], list[Place]]:
        if self._places is None or self._indexed != self._version():
            self._places, self._all, self._indexed = {}, [], self._version()
            for place in _places(self._parts):
                for sample in _read(self._parts, [place]):
                    self._all.append((place, sample.label, sample.subject))
                    if sample.label is not None:
                        self._places.setdefault(("class", sample.label), []).append(place)
                    if sample.subject is not None:
                        self._places.setdefault(("subject", sample.subject), []).append(place)
        return self._places


def sample_evenly(parts: Sequence[HoldoutPart], limit: int) -> Iterator[Sample]:
    """Yield at most `limit` samples, evenly over all parts; no others are read."""
    return _read(parts, subsample(_places(parts), limit))


def within_bytes(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Return the first samples whose images have at most `limit` bytes together."""
    sizes = accumulate(sample.image.nbytes for sample in samples)
    return [sample for sample, size in zip(samples, sizes, strict=True) if size <= limit]


def _places(parts: Sequence[HoldoutPart]) -> list[Place]:
    return [(number, i) for number, part in enumerate(parts) for i in range(len(part.samples))]


def _read(parts: Sequence[HoldoutPart], places: Sequence[Place]) -> Iterator[Sample]:
    """Yield the samples at these places that can be read."""
    for part, i in places:
        try:
            yield parts[part].samples[i]
        except BadRecord:
            continue
