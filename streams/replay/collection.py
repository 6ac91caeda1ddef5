"""Labelled images, indexed, and decoded at each access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from streamcl.errors import BadRecord, ConfigError
from streamcl.events import NO_PIXELS, Pixels, Sample
from streams.user.images import ImageLimits, decode, from_array

Indices: TypeAlias = npt.NDArray[np.int64]
Stored: TypeAlias = npt.NDArray[Any] | bytes | Path


class Images(Protocol):
    """Stored images: arrays (anything `from_array` takes), the bytes of image files, or paths."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Stored: ...


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """The group (domain, subject) of each image: index, int64 [N], into names; -1 is none."""

    names: tuple[str, ...]
    index: Indices

    def name(self, position: int) -> str | None:
        """Return the name of the group of the image at `position`, or None."""
        code = int(self.index[position])
        return self.names[code] if code >= 0 else None

    def take(self, positions: Indices) -> Grouping:
        """Return the groups of some of the images, with the same names."""
        return Grouping(self.names, self.index[positions])


def groups_of(values: Sequence[str], names: Sequence[str] | None = None) -> Grouping:
    """Return the groups of images by one name each; `names` fixes their order, else first appearance.

    >>> groups_of(["b", "a", "b"]).index.tolist()
    [0, 1, 0]
    """
    known = tuple(names) if names is not None else tuple(dict.fromkeys(values))
    code = {name: index for index, name in enumerate(known)}
    return Grouping(known, np.array([code[value] for value in values], np.int64))


@dataclass(frozen=True, eq=False)
class Collection:
    """One side (train or test) of a labelled data set.

    images: N of them, anything indexable. labels: int64 [N], an index into `classes`, -1 where unlabelled.
    ids: N strings, unique, the same in every process. domains, subjects: named groups, or None.
    A reader returns two collections with the same `classes`; `domains.names` are shared too.
    """

    name: str
    images: Images
    labels: Indices
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    domains: Grouping | None = None
    subjects: Grouping | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        _same_length(self)
        if len(self.labels) and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            raise ConfigError(
                f"{self.name}: labels run from {self.labels.min()} to {self.labels.max()}, "
                f"there are {len(self.classes)} classes",
                hint="labels are indices into the classes, -1 for unlabelled images",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the decoded sample. Raise BadRecord where the image cannot be decoded."""
        return self._sample(index, _pixels(self.images[index], self.limits))

    def without_pixels(self, index: int) -> Sample:
        """Return the sample without pixels; the image is not read."""
        return self._sample(index, NO_PIXELS)

    def _sample(self, index: int, image: Pixels) -> Sample:
        label = int(self.labels[index])
        return Sample(
            id=self.ids[index],
            image=image,
            label=self.classes[label] if label >= 0 else None,
            subject=self.subjects.name(index) if self.subjects else None,
            domain=self.domains.name(index) if self.domains else None,
        )

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Sample]:
        """Return the samples with these ids; an id that is unknown, or whose image is bad, is absent."""
        found: dict[str, Sample] = {}
        for name in ids:
            position = self._positions.get(name)
            if position is None:
                continue
            try:
                found[name] = self[position]
            except BadRecord:  # absent, as documented
                continue
        return found

    def take(self, positions: npt.ArrayLike) -> Collection:
        """Return the images at these positions (int [M]), in this order; pixels are shared."""
        where = np.asarray(positions, np.int64)
        return Collection(
            name=self.name,
            images=_Subset(self.images, where),
            labels=self.labels[where],
            classes=self.classes,
            ids=tuple(self.ids[index] for index in where),
            domains=self.domains.take(where) if self.domains else None,
            subjects=self.subjects.take(where) if self.subjects else None,
            limits=self.limits,
        )

    def where(self, classes: Sequence[str] = (), domains: Sequence[str] = ()) -> Indices:
        """Return the positions, int64 ascending, of images of these classes in these domains; () is all."""
        chosen = np.ones(len(self), bool)
        if classes:
            chosen &= np.isin(self.labels, [self.classes.index(name) for name in classes])
        if domains:
            codes = (
                [i for i, name in enumerate(self.domains.names) if name in domains] if self.domains else []
            )
            chosen &= np.isin(self.domains.index if self.domains else np.full(len(self), -1), codes)
        return np.flatnonzero(chosen).astype(np.int64)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids)}


class View(Sequence[Sample]):
    """Some samples of a collection, decoded at each access and never kept.

    Iterating and slicing leave out images that cannot be decoded, so that one damaged test image does not
    end a run; `view[i]` raises BadRecord for it, and `len` counts it.
    """

    def __init__(self, collection: Collection, positions: Indices) -> None:
        self._collection = collection
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return list(View(self._collection, self._positions[index]))
        return self._collection[int(self._positions[index])]

    def __iter__(self) -> Iterator[Sample]:
        for position in self._positions:
            try:
                yield self._collection[int(position)]
            except BadRecord:  # documented above: a test image that cannot be read is left out
                continue


@dataclass(frozen=True, slots=True, eq=False)
class _Subset:
    """The images at some positions of others."""

    images: Images
    positions: Indices

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int, /) -> Stored:
        return self.images[int(self.positions[index])]


def _pixels(stored: Stored, limits: ImageLimits) -> Pixels:
    return from_array(stored, limits) if isinstance(stored, np.ndarray) else decode(stored, limits)


def _same_length(collection: Collection) -> None:
    lengths = {
        "images": len(collection.images),
        "labels": len(collection.labels),
        "ids": len(collection.ids),
        "domains": len(collection.domains.index) if collection.domains else len(collection.ids),
        "subjects": len(collection.subjects.index) if collection.subjects else len(collection.ids),
    }
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{count} {what}" for what, count in lengths.items())
        raise ConfigError(f"{collection.name}: {found}; there must be one of each per image")
    if len(set(collection.ids)) != len(collection.ids):
        raise ConfigError(f"{collection.name}: two images have the same id")
