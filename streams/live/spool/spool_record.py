"""The form in which records are written to a spool: a header in JSON, and the bytes of an image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.errors import BadRecord, RefusedRequest
from streamcl.events import Batch, ForgetRequest, RejectedRecord
from streamcl.requests.label import Label
from streamcl.storage.segment import LogRecord
from streams.offsets import records_of
from streams.user.images import read_encoded
from streams.user.label_records import checked_label, label_in
from streams.user.labels import to_label, to_name, to_text
from streams.user.raw_record import RawRecord, raw_records
from streams.user.records import RecordPolicy, reason_of, to_pixels, user_object

ERASED = "forgotten"
"""The reason of a record that was redacted, as of one that a tombstone has dropped."""


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """A record as it is written: its header as JSON, and its image, encoded or as pixels.

    Headers have a "kind": "sample", "bad" (with the reason), "label", "request", "refused" (a request that
    cannot be read, with the reason), or "erased".
    """

    head: dict[str, Any]
    body: bytes = b""

    @property
    def id(self) -> str | None:
        """The id that the publisher gave the record, where it gave one; a label or request has none."""
        return self.head.get("id") if is_record(self.head) else None

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.body) + 512

    def numbered(self, default_id: str) -> tuple[bytes, bytes]:
        """Return header and image as bytes; a record without an id gets this one."""
        head = {"id": default_id} | self.head if is_record(self.head) else self.head
        return json.dumps(head, separators=(",", ":")).encode(), self.body


@dataclass(frozen=True, slots=True)
class SpoolFormat:
    """How a publisher's records are read before they are written.

    policy: limits, and what is done with bad records. columns: keys of mappings, as for `to_samples`.
    class_names: names of integer labels.
    """

    policy: RecordPolicy = field(default_factory=RecordPolicy)
    columns: Mapping[str, str] | None = None
    class_names: Sequence[str] = ()

    def entries_of(self, item: Any) -> Iterator[SpoolEntry]:
        """Yield the entries of what a publisher brings: a record, a batch of them, a label, a request.

        A record that cannot be read keeps its place as a bad one; where the policy says that it must end the
        run, BadRecord is raised.
        """
        if isinstance(item, ForgetRequest):
            fields = item.model_dump(mode="json", exclude={"offset"})
            yield SpoolEntry({"kind": "request", "request": fields})
            return
        if isinstance(item, RefusedRequest):
            yield SpoolEntry({"kind": "refused", "reason": str(item), "hint": item.hint})
            return
        if (label := label_in(item)) is not None:
            checked = checked_label(label, self.policy, self.class_names)
            yield SpoolEntry({"kind": "label", **asdict(checked)})
            return
        for each in records_of(item) if isinstance(item, Batch) else (item,):
            if isinstance(each, RejectedRecord):
                yield SpoolEntry({"kind": "bad", "reason": each.reason, "id": each.id})
                continue
            yield from self._records(each)
        for label in item.labels if isinstance(item, Batch) else ():
            yield from self.entries_of(label)

    def _records(self, item: Any) -> Iterator[SpoolEntry]:
        try:
            with user_object():
                found = list(raw_records(item, self.columns or {}))
        except BadRecord as bad:
            yield self._rejected(bad)
            return
        for raw in found:
            try:
                with user_object():
                    entry = self._sample(raw)
            except BadRecord as bad:
                entry = self._rejected(bad)
            yield entry

    def _rejected(self, bad: BadRecord) -> SpoolEntry:
        if self.policy.on_bad_record == "fail":
            raise bad
        return SpoolEntry({"kind": "bad", "reason": reason_of(bad)})

    def _sample(self, raw: RawRecord) -> SpoolEntry:
        policy = self.policy
        label = to_label(
            raw.label,
            missing=policy.missing_label,
            negative=policy.negative_label,
            class_names=self.class_names,
        )
        names = {name: to_text(getattr(raw, name), name) for name in ("id", "privacy")}
        names |= {name: to_name(getattr(raw, name), name) for name in ("subject", "domain")}
        image, body = self._image(raw.image)
        given = {name: value for name, value in {"label": label, **names}.items() if value is not None}
        return SpoolEntry({"kind": "sample", **given, **image}, body)

    def _image(self, image: Any) -> tuple[dict[str, Any], bytes]:
        """Return the bytes of an encoded image as they are; of any other its pixels, with their shape."""
        if isinstance(image, Mapping):  # Hugging Face's form
            image = next((image[key] for key in ("bytes", "path") if image.get(key) is not None), image)
        if isinstance(image, bytes | bytearray | memoryview):
            self.policy.check_file("encoded image", len(image))
            return {}, bytes(image)
        if isinstance(image, str | Path):
            return {}, read_encoded(Path(image), self.policy)
        pixels = to_pixels(image, self.policy)
        return {"shape": list(pixels.shape)}, pixels.tobytes()


def header_of(record: LogRecord) -> dict[str, Any]:
    """Return the header of a record of the spool."""
    head: dict[str, Any] = json.loads(record.head)
    return head


def value_of(record: LogRecord) -> Any:
    """Return the value of a record for its `Arrival`.

    A redacted record keeps its place in the stream, without its id; a redacted label or request is an empty
    batch, which has none. A damaged record is a BadRecord.
    """
    head = header_of(record)
    if head["kind"] != "sample":
        return _other_value(head)
    if record.body is None:
        return BadRecord("the image is damaged in the spool")
    image: Any = record.body
    if "shape" in head:
        image = np.frombuffer(record.body, np.uint8).reshape(head["shape"])
    names = ("id", "label", "subject", "domain", "privacy")
    return {"image": image, **{name: head.get(name) for name in names}}


def _other_value(head: Mapping[str, Any]) -> Any:
    match head["kind"]:
        case "request":
            return ForgetRequest.model_validate(head["request"])
        case "refused":
            return RefusedRequest(head["reason"], hint=head["hint"])
        case "label":
            return label_of(head)
        case "bad":
            return RejectedRecord(0, head["id"], head["reason"])
    return RejectedRecord(0, "", ERASED) if head["place"] else Batch(0, ())


def label_of(head: Mapping[str, Any]) -> Label | None:
    """Return the label in a header; None where it is that of something else."""
    return Label(head["id"], head["label"], head["fault"]) if head["kind"] == "label" else None


def is_record(head: Mapping[str, Any]) -> bool:
    """Return whether a header is that of a sample, or of a bad record, which has a place in the stream."""
    return head["kind"] in {"sample", "bad"}


def erased_header(head: Mapping[str, Any]) -> bytes:
    """Return the header that stays of what is redacted."""
    return json.dumps({"kind": "erased", "place": is_record(head)}).encode()
