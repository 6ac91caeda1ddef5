"""Converts the records that users' iterators yield, single or in batches, to samples, or rejects them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from streamcl.errors import BadRecord, ConfigError, SourceError, cause_of
from streamcl.events import NO_PIXELS, Pixels, Privacy, RejectedRecord, Sample
from streams.user.decoding import PendingImage
from streams.user.images import ImageLimits, decode, from_array
from streams.user.labels import brief, to_label, to_name, to_text
from streams.user.raw_record import RawRecord, raw_records
from streams.user.record_warnings import RecordWarnings

Read = TypeVar("Read")

MAX_REASON_LENGTH = 500  # characters of a rejection that are logged


@dataclass(frozen=True, slots=True)
class RecordPolicy(ImageLimits):
    """How bad records are treated, and the limits of a record.

    on_bad_record: "quarantine" keeps its place in the stream as a `RejectedRecord`; "fail" ends the run.
    missing_label: None as a label is an unlabelled sample (predicted, never learned), rejected, or the end.
    negative_label: -1, -100 and the like, which often mean "ignore": rejected, the end, or a class.
    max_classes: distinct labels that a stream may bring; records of a class beyond are rejected.
    max_pixels, max_side, max_file_bytes: see `ImageLimits`.
    """

    on_bad_record: Literal["quarantine", "fail"] = "quarantine"
    missing_label: Literal["unlabelled", "quarantine", "fail"] = "unlabelled"
    negative_label: Literal["quarantine", "fail", "class"] = "quarantine"
    max_classes: int = 100_000

    def __post_init__(self) -> None:
        for name in ("max_classes", "max_pixels", "max_side", "max_file_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")


def to_sample(
    record: Any, *, default_id: str, policy: RecordPolicy | None = None, class_names: Sequence[str] = ()
) -> Sample:
    """Convert one record to a sample.

    A record is `(x, y)`, `(x, y, id)`, a mapping with `image` and, as far as known, `label`, `id`,
    `subject`, `domain`, `privacy`, or a `Sample`. x is a uint8 or float array or tensor ([H, W], [H, W, C],
    [C, H, W]; see `from_array`), a PIL image, a file's path, its bytes, or a mapping of `bytes` and `path` as
    Hugging Face's data sets give. y is an integer, a string, or None. Raise BadRecord with the reason, and
    SourceError where the policy says that the run must end.
    """
    with user_object():
        raw = record if isinstance(record, RawRecord) else RawRecord.of(record)
        return _sample(raw, default_id, policy or RecordPolicy(), class_names)


def to_samples(
    record: Any,
    *,
    offset: int,
    name: str,
    policy: RecordPolicy | None = None,
    class_names: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    wanted: tuple[int, int] = (0, 1),
    warnings: RecordWarnings | None = None,
) -> Iterator[Sample | RejectedRecord]:
    """Yield the samples of one record, or of a batch of them, in order; `offset` is the first one's.

    A batch is `(X, Y)`, `(X, Y, ids)` or a mapping of columns, in which X is an array or tensor with one more
    axis than an image, or a list or tuple of images, and Y a sequence of as many labels; what is given once
    (a domain, say) holds for all. `columns` renames a mapping's keys, {"label": "fine_label"}. A BadRecord in
    place of a record is one already rejected. Records without an id are called "{name}-{offset}". An empty
    batch yields nothing. With `on_bad_record: fail` the first BadRecord is raised. `wanted` is (rank, world):
    records at other offsets than `rank` modulo `world` are not decoded and have no pixels. `warnings` takes
    every sample with the label and the id that its record gave.
    """
    policy = policy or RecordPolicy()
    rank, world = wanted
    for place, raw in enumerate(_raw_records(record, columns), start=offset):
        default_id = f"{name}-{place}"
        try:
            if isinstance(raw, BadRecord):
                raise raw
            with user_object():
                sample = _sample(raw, default_id, policy, class_names, decoded=place % world == rank)
            if warnings is not None:
                warnings.observe(place, sample, label=raw.label, own_id=sample.id != default_id)
            yield sample
        except BadRecord as bad:
            if policy.on_bad_record == "fail":
                raise
            yield _rejected(place, raw, default_id, bad, class_names)


def reason_of(bad: SourceError) -> str:
    """Return the message and its hint, shortened, and the same in every run."""
    reason = f"{bad}; {bad.hint}" if bad.hint else str(bad)
    reason = re.sub(r" at 0x[0-9a-fA-F]+", "", reason)  # addresses differ from run to run, offsets do not
    return reason.encode(errors="replace").decode()[:MAX_REASON_LENGTH]


def _raw_records(record: Any, columns: Mapping[str, str] | None) -> Iterator[RawRecord | BadRecord]:
    try:
        with user_object():
            yield from raw_records(record, columns or {})
    except BadRecord as bad:
        yield bad


@contextmanager
def user_object() -> Iterator[None]:
    """Raise BadRecord for whatever a user's object raises: any attribute may raise anything."""
    try:
        yield
    except SourceError:
        raise
    except SystemExit as error:
        raise SourceError(f"a record's code ended the process: {cause_of(error)}") from error
    except Exception as error:
        message = f"record cannot be read: {cause_of(error)}"
        raise BadRecord(message[:MAX_REASON_LENGTH]) from error


def _sample(
    raw: RawRecord, default_id: str, policy: RecordPolicy, class_names: Sequence[str], *, decoded: bool = True
) -> Sample:
    label = to_label(
        raw.label, missing=policy.missing_label, negative=policy.negative_label, class_names=class_names
    )
    return Sample(
        id=to_text(raw.id, "id") or default_id,
        image=to_pixels(raw.image, policy) if decoded else NO_PIXELS,
        label=label,
        subject=to_name(raw.subject, "subject"),
        domain=to_name(raw.domain, "domain"),
        privacy=_privacy(raw.privacy),
    )


def to_pixels(x: Any, limits: ImageLimits) -> Pixels:
    """Convert x (see `to_sample`) to an image, uint8 RGB [H, W, 3]."""
    if isinstance(x, PendingImage):
        return x.pixels()
    if isinstance(x, Mapping):  # Hugging Face's encoded image {"bytes": ..., "path": ...}, one of them None
        given = [x[key] for key in ("bytes", "path") if x.get(key) is not None]
        if not given:
            keys = ", ".join(brief(key) for key in list(x)[:5])
            hint = "streamcl learns from images: give pixels as x"
            raise BadRecord(f"x is a mapping of features ({keys})", hint=hint)
        x = given[0]
    if isinstance(x, Image.Image | str | Path):
        return decode(Path(x) if isinstance(x, str) else x, limits)
    if isinstance(x, bytes | bytearray | memoryview):
        return decode(bytes(x), limits)
    if is_tensor(x):
        tensor = x.detach().cpu()  # numpy has no bfloat16
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        return from_array(np.asarray(tensor.numpy()), limits, channels_first=True)
    if isinstance(x, np.ndarray | np.generic) or hasattr(x, "__array__"):
        return from_array(np.asarray(x), limits)
    hint = "x is an array, a tensor, a PIL image, a path or the bytes of a picture"
    raise BadRecord(f"image is a {type(x).__name__}: {brief(x)}", hint=hint)


def is_tensor(x: Any) -> bool:
    """Return whether x is a tensor of torch, by its methods: torch is not imported."""
    methods = ("detach", "cpu", "numpy")
    return not isinstance(x, type) and all(callable(getattr(x, name, None)) for name in methods)


def _privacy(value: Any) -> Privacy:
    if value is None or value == "core":
        return "core"
    if value == "user":
        return "user"
    raise BadRecord(f"privacy is {brief(value)}; expected core or user")


def _rejected(
    place: int, raw: RawRecord | BadRecord, default_id: str, bad: BadRecord, class_names: Sequence[str]
) -> RejectedRecord:
    """Return a rejected record with the names that can be read, under the default id where its own cannot."""
    if isinstance(raw, BadRecord):
        return RejectedRecord(place, default_id, reason_of(bad))
    return RejectedRecord(
        place,
        _as_far_as_readable(lambda: to_text(raw.id, "id")) or default_id,
        reason_of(bad),
        label=_as_far_as_readable(
            lambda: to_label(raw.label, missing="unlabelled", negative="class", class_names=class_names)
        ),
        subject=_as_far_as_readable(lambda: to_name(raw.subject, "subject")),
        domain=_as_far_as_readable(lambda: to_name(raw.domain, "domain")),
        privacy=_as_far_as_readable(lambda: _privacy(raw.privacy)) or "core",
    )


def _as_far_as_readable(read: Callable[[], Read | None]) -> Read | None:
    try:
        return read()
    except (Exception, SystemExit):  # the name is what is bad, or any of the user's attributes raises
        return None
