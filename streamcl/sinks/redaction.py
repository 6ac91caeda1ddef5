"""Takes an erased sample or class out of the records that a sink keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from streamcl.protocols import Sink


@dataclass(frozen=True, slots=True)
class RedactionTarget:
    """Samples, and the class, that no retained record may name after an erasure."""

    offsets: Collection[int]
    ids: Collection[str]
    label: str | None = None

    def redact(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the record without what it names of the target; None where it names nothing.

        A record of a sample keeps its step and offset, so that the log has no gap.
        """
        erased = "id" in record and (record.get("offset") in self.offsets or record["id"] in self.ids)
        if erased or (self.label is not None and record.get("label") == self.label):
            place = {name: record[name] for name in ("step", "offset") if name in record}
            return {**place, "erased": True}
        changed = {
            name: [item for item in value if item != self.label] if isinstance(value, list) else None
            for name, value in record.items()
            if name in {"predicted", "classes", "label"} and self._is_named(value)
        }
        return {**record, **changed} if changed else None

    def _is_named(self, value: Any) -> bool:
        return self.label is not None and (
            value == self.label or (isinstance(value, list) and self.label in value)
        )


@runtime_checkable
class RedactableSink(Sink, Protocol):
    """A sink that keeps records which name samples or classes, and can take them out."""

    def redact(self, target: RedactionTarget) -> int:
        """Redact every record written so far; positions stay as they are. Return how many changed.

        After a crash a record is as before or redacted; redacting again is harmless.
        """
