"""Data sets of torchvision by their names there, as labelled images."""

from __future__ import annotations

import inspect
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import numpy as np

from streamcl.errors import BadRecord, ConfigError, MissingExtra, SourceError, cause_of, nearest
from streamcl.events import Pixels
from streamcl.requests.terms import canonical_name
from streams.replay.collection import Collection, Indices
from streams.user.images import ImageLimits
from streams.user.records import to_pixels

TARGETS = ("targets", "labels", "_labels", "y", "_samples", "samples")
"""Attributes with the label of each image, or with pairs of path and label, in data sets of torchvision."""
COMPARED = 16  # images whose label is compared with that of such an attribute before it is used


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of a data set's constructor but for the side."""

    root: str | None
    download: bool
    more: Mapping[str, Any]


def torchvision(
    dataset: str,
    root: str | None = None,
    *,
    split: str = "train",
    test: str | None = "test",
    download: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Collection | tuple[Collection, Collection]:
    """Return the images of a data set, and those that it holds out where it has a side for that.

    An id is "<data set>/<side>/<position>". Images are read at access; labels are read once, at the start.

    Args:
        dataset: the name of its class in `torchvision.datasets`.
        root: the folder of its files.
        split: the side that is streamed: "train" or "test" where the class takes `train`, else what it takes
            as `split`; without meaning where it takes neither.
        test: the side that is held out; None: none.
        download: whether files that are not there are downloaded.
        options: further arguments of the class.

    Raises:
        ConfigError: there is no such data set or side, or it has no label an image.
        SourceError: its files are absent or damaged.
    """
    kind = _class_of(dataset)
    given = _Options(root, download, options or {})
    sides = _sides(kind, split, test)
    train = _collection(kind, dataset, split, sides[0], given)
    if len(sides) == 1:
        return train
    held_out = _collection(kind, dataset, str(test), sides[1], given)
    if held_out.classes != train.classes:
        raise ConfigError(f"{dataset} names other classes in {split!r} than in {test!r}", hint="test: null")
    return train, held_out


@dataclass(frozen=True, slots=True)
class IndexedPictures:
    """The images of a data set whose items are pairs of an image and a label."""

    dataset: Any
    limits: ImageLimits

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Pixels:
        """Return the pixels, uint8 RGB [H, W, 3]. Raise BadRecord where they cannot be read."""
        try:
            image = self.dataset[index][0]
        except Exception as error:  # of files that are damaged or absent
            raise BadRecord(f"image {index} cannot be read: {cause_of(error)}") from error
        return to_pixels(image, self.limits)


def _class_of(name: str) -> Callable[..., Any]:
    from streamcl.sources.deferred_compiler import deferred_compiler
    from streamcl.sources.torchvision_package import declare_torchvision_operators

    declare_torchvision_operators()
    try:
        with deferred_compiler():
            from torchvision import datasets
    except ImportError as error:
        hint = "pip install torchvision"
        raise MissingExtra(f"torchvision cannot be imported: {error}", hint=hint) from error
    if name not in datasets.__all__:
        raise ConfigError(f"torchvision has no data set {name!r}", hint=nearest(name, datasets.__all__))
    return getattr(datasets, name)  # type: ignore[no-any-return]


def _sides(kind: Callable[..., Any], split: str, test: str | None) -> list[dict[str, Any]]:
    """Return the arguments that select the sides: of the one that is streamed, then of the one held out."""
    parameters = inspect.signature(kind).parameters
    names = [split] if test is None else [split, test]
    if "train" in parameters or kind.__name__ == "EMNIST":  # whose `split` names a set of classes
        if unknown := sorted({*names} - {"train", "test"}):
            raise ConfigError(f"{kind.__name__} has no split {unknown[0]!r}", hint="it has train and test")
        return [{"train": name == "train"} for name in names]
    return [{"split": name} for name in names] if "split" in parameters else [{}]


def _collection(
    kind: Callable[..., Any], name: str, split: str, side: Mapping[str, Any], given: _Options
) -> Collection:
    dataset = _made(kind, name, side, given)
    labels = _labels(dataset, f"{name} ({split})")
    classes = _class_names(dataset, int(labels.max(initial=-1)) + 1)
    return Collection(
        name=name,
        images=IndexedPictures(dataset, ImageLimits()),
        labels=labels,
        classes=classes,
        ids=tuple(f"{name}/{split}/{position:05d}" for position in range(len(labels))),
    )


def _made(kind: Callable[..., Any], name: str, side: Mapping[str, Any], given: _Options) -> Any:
    """Return the data set. Raise ConfigError for arguments that it refuses, SourceError for absent files."""
    parameters = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {**side, **given.more}
    if given.root is not None and "root" in parameters:
        arguments["root"] = given.root
    if given.download:
        arguments["download"] = True
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be made: {error}", hint="root, split, test and options") from error
    except URLError as error:
        raise SourceError(
            f"{name} cannot be downloaded: {error}",
            hint="download it on a machine with a network, and give the folder as root",
        ) from error
    except (RuntimeError, OSError) as error:
        hint = None if given.download else "root is the folder of its files; download: true downloads them"
        raise SourceError(f"{name} cannot be read: {cause_of(error)}", hint=hint) from error


def _labels(dataset: Any, name: str) -> Indices:
    """Return the label of each image, int64 [N], -1 where it has none.

    They are those of a known attribute where this agrees with the labels of some images; otherwise every
    image is read for its label.
    """
    count = len(dataset)
    probes = {position * count // COMPARED for position in range(COMPARED if count else 0)}
    for attribute in TARGETS:
        known = _integers(getattr(dataset, attribute, None), count)
        if known is not None and all(_label(dataset, name, at) in {None, known[at]} for at in probes):
            return np.maximum(known, -1)
    found = [_label(dataset, name, position) for position in range(count)]
    return np.array([-1 if label is None else max(label, -1) for label in found], np.int64)


def _integers(values: Any, count: int) -> Indices | None:
    """Return `count` integers, int64 [count]; of pairs the second parts; None for anything else."""
    if isinstance(values, Sequence) and all(isinstance(each, tuple) and len(each) == 2 for each in values):
        values = [each[1] for each in values]
    try:
        found = np.asarray(values)
    except ValueError:  # rows of unequal lengths
        return None
    return found.astype(np.int64) if found.shape == (count,) and found.dtype.kind in "iu" else None


def _label(dataset: Any, name: str, position: int) -> int | None:
    """Return an image's label; None where it cannot be read. Raise ConfigError for one of another kind."""
    try:
        label = dataset[position][1]
    except Exception:  # the image is damaged or absent, which the stream says when it comes to it
        return None
    label = label.item() if getattr(label, "shape", None) == () else label
    if not isinstance(label, numbers.Integral) or isinstance(label, bool):
        kind = type(label).__name__
        raise ConfigError(
            f"{name} has a {kind} in place of a label", hint="streamcl learns one class an image"
        )
    return int(label)


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """Return the names of at least `count` classes: the first of several, or the number where there is none.

    A name that two classes share, such as ImageNet's crane, is followed by the number.
    """
    given = list(getattr(dataset, "classes", None) or ())
    firsts = [canonical_name(str(each[0] if isinstance(each, tuple) else each)) for each in given]
    times = Counter(firsts)
    names = [name if times[name] == 1 else f"{name} ({code})" for code, name in enumerate(firsts)]
    return (*names, *map(str, range(len(names), count)))
