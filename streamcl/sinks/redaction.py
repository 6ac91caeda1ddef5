"""Takes an erased sample or class out of the records that a sink keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from streamcl.errors import StreamclError
from streamcl.protocols import Sink


@dataclass(frozen=True, slots=True)
class RedactionTarget:
    """Samples, and names, that no retained record may hold after an erasure.

    labels: classes. parts: held-out parts that are named after a class or a domain.
    """

    offsets: Collection[int]
    ids: Collection[str]
    labels: Collection[str] = ()
    parts: Collection[str] = ()

    def redact(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the record without what it names of the target; None where it names nothing.

        A record of a sample keeps its step and offset, so that the log has no gap. The offset of an event,
        which has a kind, is that of the next record of the stream, and not that of the sample that it names.
        """
        own = "kind" not in record and record.get("offset") in self.offsets
        erased = "id" in record and (own or record["id"] in self.ids)
        if erased or self._is_named(record.get("label")):
            place = {name: record[name] for name in ("step", "offset") if name in record}
            return {**place, "erased": True}
        if not self.labels and not self.parts:
            return None
        changed = {name: self._without_names(name, value) for name, value in record.items()}
        changed = {name: each for name, each in changed.items() if each is not record[name]}
        return {**record, **changed} if changed else None

    def _without_names(self, field: str, value: Any) -> Any:
        if field == "predicted" and self._is_named(value):
            return None
        if field == "classes" and isinstance(value, list) and any(map(self._is_named, value)):
            return [each for each in value if not self._is_named(each)]
        if field == "parts" and isinstance(value, Mapping) and any(part in self.parts for part in value):
            return {part: figure for part, figure in value.items() if part not in self.parts}
        return value

    def _is_named(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.labels


NoteCount: TypeAlias = Callable[[str, int], int]
"""Makes durable how many records of a file, by its name, are to change, and returns the count that holds: the
one from before where a crash has interrupted the same erasure after the file was replaced."""


def count_unnoted(name: str, count: int) -> int:  # noqa: ARG001 - the signature is given
    """Return the count, which is not made durable."""
    return count


class MissedRedaction(StreamclError):
    """Copies of a run's record, by sinks, still hold what was erased; the record itself does not.

    sinks: their names.
    """

    def __init__(self, sinks: Sequence[str]) -> None:
        super().__init__(f"the sinks {', '.join(sinks)} still hold what was erased")
        self.sinks = tuple(sinks)


@runtime_checkable
class RedactableSink(Sink, Protocol):
    """A sink that keeps records which name samples or classes, and can take them out."""

    def redact(self, target: RedactionTarget) -> int:
        """Redact every record written so far; positions stay as they are. Return how many changed.

        After a crash a record is as before or redacted; redacting again is harmless.
        """


class RunRecord(Sink, Protocol):
    """The sinks of a run together, or the one that is its record."""

    def redact(self, target: RedactionTarget, note: NoteCount = count_unnoted) -> int:
        """Redact like RedactableSink, each count noted before the records are gone; return their sum.

        Raise MissedRedaction, after all others, where copies by a sink still hold what was erased.
        """
