"""Distinguishes a batch of records from a single one, and splits it without reading a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamcl.errors import BadRecord
from streamcl.events import Sample

ALIASES = {
    "image": ("image", "img", "x", "pixel_values"),
    "label": ("label", "labels", "y", "target"),
    "id": ("id", "ids", "__key__"),
    "subject": ("subject", "subjects"),
    "domain": ("domain", "domains"),
    "privacy": ("privacy",),
}
FORMS = "a record is (x, y), (x, y, id) or a mapping with image and label"


@dataclass(frozen=True, slots=True, eq=False)
class RawRecord:
    """The parts of one record under standard names, as the user's object has them."""

    image: Any
    label: Any = None
    id: Any = None
    subject: Any = None
    domain: Any = None
    privacy: Any = None

    @classmethod
    def of(cls, record: Any, columns: Mapping[str, str] | None = None) -> RawRecord:
        """Return the parts of one record. Raise BadRecord where it has none of the forms."""
        if isinstance(record, Sample):
            return cls(**{name: getattr(record, name) for name in ALIASES})
        if isinstance(record, Mapping):
            return cls(**_by_name(record, columns or {}))
        if isinstance(record, tuple | list) and len(record) in {2, 3}:
            return cls(*record)
        size = f" of {len(record)}" if isinstance(record, tuple | list) else ""
        raise BadRecord(f"record is a {type(record).__name__}{size}", hint=FORMS)


def raw_records(record: Any, columns: Mapping[str, str]) -> Iterator[RawRecord]:
    """Yield the records in `record`: one, or those of a batch.

    A batch is a record whose labels are a sequence (a list, tuple, array or tensor with an axis), or whose
    images are one: a list, a tuple, or an array or tensor of four axes. A list of mappings or samples is a
    batch too. Raise BadRecord where the columns of a batch differ in length.
    """
    if isinstance(record, BadRecord):  # one that the source itself has rejected
        raise record
    if _is_list_of_records(record):
        yield from (RawRecord.of(item, columns) for item in record)
        return
    whole = RawRecord.of(record, columns)
    if not is_batch(whole):
        yield whole
        return
    size = _size(whole)
    for index in range(size):
        yield RawRecord(**{name: _at(getattr(whole, name), name, index, size) for name in ALIASES})


def is_batch(raw: RawRecord) -> bool:
    """Return whether the parts are columns of a batch.

    >>> is_batch(RawRecord(image="a.png", label=3)), is_batch(RawRecord(["a.png", "b.png"], [3, 4]))
    (False, True)
    """
    return _is_column(raw.label) or _is_column(raw.image, axes=4)


def _is_list_of_records(record: Any) -> bool:
    """Return whether it is a batch of mappings or samples; a pair of mappings without images is not one."""
    items = record if isinstance(record, list | tuple) else ()
    if not items or not all(isinstance(item, Sample | Mapping) for item in items):
        return False
    return isinstance(record, list) or all(
        isinstance(item, Sample) or any(key in item for key in ALIASES["image"]) for item in items
    )


def _by_name(record: Mapping[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name, aliases in ALIASES.items():
        keys = [columns[name]] if name in columns else [key for key in aliases if key in record]
        if len(keys) > 1:
            hint = f"keep one, or say which: columns: {{{name}: {keys[0]}}}"
            raise BadRecord(f"record has more than one {name}: {', '.join(keys)}", hint=hint)
        if keys and keys[0] in record:
            parts[name] = record[keys[0]]
    shown = ", ".join(str(key)[:40] for key in list(record)[:10])
    if "image" not in parts:
        raise BadRecord(f"record has no image among its keys: {shown}", hint=FORMS)
    known = {*columns.values(), *(alias for aliases in ALIASES.values() for alias in aliases)}
    if "label" not in parts and any(key not in known for key in record):
        hint = "name its key (columns: {label: ...}), or set label to None where a record has none"
        raise BadRecord(f"record has no label among its keys: {shown}", hint=hint)
    return parts


def _is_column(value: Any, axes: int = 1) -> bool:
    shape = getattr(value, "shape", None)
    return isinstance(value, list | tuple) or (isinstance(shape, tuple) and len(shape) >= axes)


def _size(batch: RawRecord) -> int:
    """Return the number of records in the columns of a batch; raise BadRecord where they differ."""
    columns = {name: column for name in ALIASES if _is_column(column := getattr(batch, name))}
    sizes = {name: len(c) if isinstance(c, list | tuple) else int(c.shape[0]) for name, c in columns.items()}
    if "image" not in sizes or len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        hint = "give as many labels (and ids) as images"
        raise BadRecord(f"batch with unequal columns: {found}", hint=hint)
    if "label" not in sizes and batch.label is not None:
        hint = "give one label an image: a list, array or tensor"
        raise BadRecord("batch of images with one label", hint=hint)
    return sizes["image"]


def _at(column: Any, name: str, index: int, size: int) -> Any:
    if name == "image" or _is_column(column):
        return column[index]
    if name == "id" and column is not None and size > 1:
        raise BadRecord("batch with one id", hint="give one id an image, or none")
    return column
