"""Labelled images, indexed, and decoded at each access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
        """Return the groups of the images at these positions, int64 [n], with the same names."""
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
        sizes = {"images": len(self.images), "labels": len(self.labels), "ids": len(self.ids)}
        groups = {"domains": self.domains, "subjects": self.subjects}
        sizes |= {name: len(each.index) for name, each in groups.items() if each}
        if len(set(sizes.values())) != 1:
            found = ", ".join(f"{size} {name}" for name, size in sizes.items())
            raise ConfigError(f"{self.name}: {found}; there must be one of each per image")
        if len(set(self.ids)) != len(self.ids):
            twice, count = Counter(self.ids).most_common(1)[0]
            raise ConfigError(
                f"{self.name}: {count} images have the same id {twice!r:.80}",
                hint="every image needs an id of its own, by which a request to forget can name it",
            )
        low, high = (self.labels.min(), self.labels.max()) if len(self.labels) else (-1, -1)
        if low < -1 or high >= len(self.classes):
            raise ConfigError(
                f"{self.name}: labels run from {low} to {high}, there are {len(self.classes)} classes",
                hint="labels are indices into the classes, -1 for unlabelled images",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the decoded sample. Raise BadRecord where the image cannot be decoded."""
        stored, limits = self.images[index], self.limits
        image = from_array(stored, limits) if isinstance(stored, np.ndarray) else decode(stored, limits)
        return self._sample(index, image)

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

    def fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Yield the samples with these ids; an id that is unknown, or whose image is bad, is passed over."""
        known = [self._positions[name] for name in ids if name in self._positions]
        yield from View(self, np.array(known, np.int64))

    def take(self, positions: npt.ArrayLike) -> Collection:
        """Return the images at these positions (int [M]), in this order; pixels are shared."""
        where = np.asarray(positions, np.int64)
        return replace(
            self,
            images=_Subset(self.images, where),
            labels=self.labels[where],
            ids=tuple(self.ids[index] for index in where),
            domains=self.domains.take(where) if self.domains else None,
            subjects=self.subjects.take(where) if self.subjects else None,
        )

    def split(self, test: Indices) -> tuple[Collection, Collection]:
        """Return the images that are not at `test`, int64 [n], ascending, and those that are, as listed."""
        return self.take(np.setdiff1d(np.arange(len(self)), test)), self.take(test)

    def where(self, classes: Sequence[str] = (), domains: Sequence[str] = ()) -> Indices:
        """Return the positions, int64 [n] ascending, of images of these classes and domains; () is all."""
        chosen = np.ones(len(self), bool)
        if classes:
            chosen &= np.isin(self.labels, [self.classes.index(name) for name in classes])
        if domains:
            names, index = (self.domains.names, self.domains.index) if self.domains else ((), self.labels)
            chosen &= np.isin(index, [code for code, name in enumerate(names) if name in domains])
        return np.flatnonzero(chosen).astype(np.int64)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids)}


class View(Sequence[Sample]):
    """Some samples of a collection, decoded at each access and never kept.

    Iterating and slicing leave out images that cannot be decoded, so that one damaged test image does not
    end a run; `view[i]` raises BadRecord for it, and `len` counts it.

    Args:
        collection: the samples are of this one.
        positions: int64 [n], their places in it, in the order of the view.
    """

    def __init__(self, collection: Collection, positions: Indices) -> None:
        self._collection, self._positions = collection, positions

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
