"""The rows of a Hugging Face data set: which columns are read, as a collection or as a stream of records."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.errors import BadRecord, ConfigError, nearest
from streamcl.protocols import State
from streamcl.requests.terms import canonical_name
from streams.replay.collection import Collection, Grouping, Stored
from streams.user.labels import to_label, to_name, to_text


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; None: image and label are found by their types, the others are not read."""

    image: str | None = None
    label: str | None = None
    ids: str | None = None
    subject: str | None = None
    domain: str | None = None

    def found_in(self, name: str, features: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns' names by those of a record's parts. Raise ConfigError where one is absent.

        Args:
            name: of the data set, for messages.
            features: the types of its columns.
        """
        given = {
            "image": self.image or _only(name, features, "Image", "image"),
            "label": self.label or _only(name, features, "ClassLabel", "label"),
            "id": self.ids,
            "subject": self.subject,
            "domain": self.domain,
        }
        found = {part: column for part, column in given.items() if column is not None}
        for column in found.values():
            if features and column not in features:
                raise ConfigError(f"{name} has no column {column!r}", hint=nearest(column, list(features)))
        return found


class StoredImages:
    """The images of a column, as the bytes of files or as paths.

    Args:
        dataset: a `datasets.Dataset`.
        column: with images, bytes, or paths.
    """

    def __init__(self, dataset: Any, column: str) -> None:
        self._dataset, self._column = _encoded(dataset, column).select_columns([column]), column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> Stored:
        """Return the file's bytes or its path. Raise BadRecord where there is neither."""
        value = self._dataset[index][self._column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            return Path(value)
        if not isinstance(value, bytes):
            raise BadRecord(f"row {index} has no picture in the column {self._column!r}")
        return value


class StreamedRows:
    """The rows of an iterable data set as records; its state is that of the data set.

    Args:
        dataset: a `datasets.IterableDataset`; it is copied.
        name: for messages.
        wanted: its columns.

    Attributes:
        classes: the names of the integers of the label column.
        dataset: the copy.
    """

    def __init__(self, dataset: Any, name: str, wanted: Columns) -> None:
        self._features = dataset.features or {}
        self._columns = wanted.found_in(name, self._features)
        self.classes = _class_names(self._features.get(self._columns["label"]))
        self.dataset = _encoded(copy.deepcopy(dataset), self._columns["image"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.dataset:
            record = {part: row[column] for part, column in self._columns.items()}
            yield {**record, "image": _with_bytes(record["image"]), "label": _known(record["label"])}

    def state_dict(self) -> State:
        """Return the data set's own position."""
        return self.dataset.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position."""
        self.dataset.load_state_dict(dict(state))


def collection_of(dataset: Any, name: str, wanted: Columns, classes: Sequence[str] = ()) -> Collection:
    """Return the images of a split with their labels; pixels are read at access.

    Args:
        dataset: a `datasets.Dataset`.
        name: of the collection, which begins the ids.
        wanted: its columns.
        classes: those of another split, which come first.

    Raises:
        ConfigError: a column is absent, or holds something else.
    """
    columns = wanted.found_in(name, dataset.features)
    label = columns["label"]
    names = _class_names(dataset.features[label])
    labels = [_label(f"{name}: {label!r}", value, names) for value in _values(dataset, label)]
    known = tuple(dict.fromkeys((*classes, *(names or sorted({*labels} - {None}, key=_order)))))
    codes: dict[str | None, int] = {each: code for code, each in enumerate(known)}
    texts = _texts(dataset, name, columns.get("id"))
    return Collection(
        name=name,
        images=StoredImages(dataset, columns["image"]),
        labels=np.array([codes.get(each, -1) for each in labels], np.int64),
        classes=known,
        ids=tuple(text or f"{name}/{row:05d}" for row, text in enumerate(texts)),
        domains=_groups(_texts(dataset, name, columns.get("domain"))),
        subjects=_groups(_texts(dataset, name, columns.get("subject"))),
    )


def _only(name: str, features: Mapping[str, Any], kind: str, part: str) -> str:
    """Return the only column of a type. Raise ConfigError where there are none or several."""
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        listed = ", ".join(f"{column} ({type(each).__name__})" for column, each in features.items())
        raise ConfigError(
            f"{name} has {len(found)} columns of the type {kind}: {listed or 'it does not say its columns'}",
            hint=f"name one: {part}: ...",
        )
    return found[0]


def _class_names(feature: Any) -> tuple[str, ...]:
    return tuple(map(canonical_name, getattr(feature, "names", None) or ()))


def _encoded(dataset: Any, column: str) -> Any:
    """Return the data set with the files of images as they are; streamcl decodes them within its limits."""
    feature: Any = (dataset.features or {}).get(column)
    if type(feature).__name__ != "Image":
        return dataset
    return dataset.cast_column(column, type(feature)(decode=False))


def _with_bytes(image: Any) -> Any:
    """Return the image; one that is a file elsewhere is read."""
    place = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else None
    if not isinstance(place, str) or "://" not in place:
        return image
    import fsspec  # datasets needs it

    with fsspec.open(place, "rb") as file:
        return file.read()


def _values(dataset: Any, column: str) -> list[Any]:
    return dataset.select_columns([column])[:][column]  # type: ignore[no-any-return]


def _known(label: Any) -> Any:
    """Return the label; None for a negative number, as test splits have it."""
    return None if isinstance(label, numbers.Integral) and int(label) < 0 else label


def _label(place: str, value: Any, names: Sequence[str]) -> str | None:
    try:
        return to_label(_known(value), missing="unlabelled", negative="fail", class_names=names)
    except BadRecord as bad:
        raise ConfigError(f"the column {place} cannot be the labels: {bad}", hint=bad.hint) from bad


def _order(name: str | None) -> tuple[int, str]:
    """Return a sort key of classes: numbers by their size, then names."""
    return (len(name), name) if name is not None and name.isdigit() else (2**31, str(name))


def _texts(dataset: Any, name: str, column: str | None) -> list[str | None]:
    """Return a column as texts; None throughout where there is no such column."""
    if column is None:
        return [None] * len(dataset)
    try:
        return [to_text(None if value == "" else value, column) for value in _values(dataset, column)]
    except BadRecord as bad:
        raise ConfigError(f"the column {name}: {column!r} cannot be read: {bad}", hint=bad.hint) from bad


def _groups(values: Sequence[str | None]) -> Grouping | None:
    """Return the groups of images by their names, -1 where there is none; None where no image has one."""
    names = [to_name(value, "name") for value in values]
    known: dict[str | None, int] = {}
    for each in names:
        if each is not None:
            known.setdefault(each, len(known))
    if not known:
        return None
    return Grouping(tuple(map(str, known)), np.array([known.get(each, -1) for each in names], np.int64))
