"""Reads the metadata of a user's object: class names, length, shifts, held-out records."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, overload

from streamcl.errors import SourceError, StreamclError, cause_of
from streamcl.events import Batch, ForgetRequest, HoldoutPart, Sample, StreamInfo
from streamcl.requests.terms import canonical_name
from streams.user.raw_record import ALIASES, RawRecord, is_batch, raw_records
from streams.user.readers import is_map_style
from streams.user.records import RecordPolicy, to_sample


def info_of(made: Any, name: str, policy: RecordPolicy, columns: Mapping[str, str] | None) -> StreamInfo:
    """Return the object's `classes`, `length`, `shifts` and `holdout`, where it has valid ones.

    The length of a data set read by index is its own, if its items are single records. `holdout` is a
    sequence of records, one batch of them, or a mapping from names to either. Raise SourceError for shifts
    that are not offsets and for any other holdout.
    """
    return StreamInfo(
        name=name,
        length=_length(made),
        classes=_classes(made, columns),
        shifts=_shifts(made),
        holdout=_holdout(made, name, policy, label_names(made, columns), columns or {}),
    )


def label_names(made: Any, columns: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return names for integer labels: `classes` if strings, or those of a Hugging Face label column."""
    given = getattr(made, "classes", None)
    if given is None:
        key, features = (columns or {}).get("label"), getattr(made, "features", None)
        known = features if isinstance(features, Mapping) else {}
        named = (getattr(known.get(each), "names", None) for each in ((key,) if key else ALIASES["label"]))
        given = next((names for names in named if names), None)
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        return ()
    return tuple(map(canonical_name, given)) if len(set(given)) == len(given) else ()


def _classes(made: Any, columns: Mapping[str, str] | None) -> tuple[str, ...]:
    given = getattr(made, "classes", None)
    if isinstance(given, list | tuple) and given and all(_is_integer(label) for label in given):
        return tuple(dict.fromkeys(str(int(label)) for label in given))
    return tuple(dict.fromkeys(label_names(made, columns)))


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _length(made: Any) -> int | None:
    declared = getattr(made, "length", None)
    if _is_integer(declared):
        return int(declared)  # type: ignore[arg-type]
    if not is_map_style(made):
        return None
    size = len(made)
    try:
        items = made if isinstance(made, list | tuple) else [made[index] for index in range(min(size, 1))]
        return size if all(_is_one_record(item) for item in items) else None
    except (Exception, SystemExit):  # the user's code may raise anything; reading the stream reports it
        return None


def _is_one_record(item: Any) -> bool:
    if isinstance(item, Batch | ForgetRequest):
        return False
    if isinstance(item, list | tuple) and len(item) not in {2, 3}:
        return True  # it is rejected and keeps its place
    return not isinstance(item, list | tuple | Mapping) or not is_batch(RawRecord.of(item))


def _shifts(made: Any) -> tuple[int, ...]:
    given = getattr(made, "shifts", None)
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or not all(_is_integer(shift) and shift > 0 for shift in given):
        raise SourceError("shifts of the source are not a list of offsets", hint="shifts = [1000, 2000]")
    return tuple(sorted({int(shift) for shift in given}))


def _holdout(
    made: Any, name: str, policy: RecordPolicy, names: Sequence[str], columns: Mapping[str, str]
) -> tuple[HoldoutPart, ...]:
    given = getattr(made, "holdout", None)
    if given is None:
        return ()
    named = isinstance(given, Mapping) and not any(key in given for key in ALIASES["image"])
    return tuple(
        HoldoutPart(
            str(part), HoldoutView(_rows(records, part, columns), f"{name}-{part}", policy, names, columns)
        )
        for part, records in (given if named else {"holdout": given}).items()
    )


def _rows(records: Any, part: Any, columns: Mapping[str, str]) -> Any:
    """Return a sequence of single records; a batch, (X, Y), is split without copying pixels."""
    pair = isinstance(records, tuple) and len(records) in {2, 3}
    if isinstance(records, Mapping) or (pair and is_batch(RawRecord.of(records))):
        return list(raw_records(records, columns))
    if not is_map_style(records):
        raise SourceError(
            f"holdout {part!r} is a {type(records).__name__}",
            hint="holdout = {name: a list of records or a data set with __len__ and __getitem__}",
        )
    return records


class HoldoutView(Sequence[Sample]):
    """Held-out records as samples, each read at access, so that a large test set stays on disk."""

    def __init__(
        self,
        records: Any,
        name: str,
        policy: RecordPolicy,
        class_names: Sequence[str],
        columns: Mapping[str, str],
    ) -> None:
        self._records, self._name, self._policy = records, name, policy
        self._class_names, self._columns = class_names, columns

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...

    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        """Return the sample. Raise SourceError, with its name, where the record is bad."""
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        name = f"{self._name}-{place}"
        try:
            record = self._records[place]
            raw = record if isinstance(record, RawRecord) else RawRecord.of(record, self._columns)
            return to_sample(raw, default_id=name, policy=self._policy, class_names=self._class_names)
        except StreamclError as error:
            raise SourceError(f"held-out record {name} cannot be used: {error}") from error
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise SourceError(f"held-out record {name} cannot be used: {cause_of(error)}") from error
