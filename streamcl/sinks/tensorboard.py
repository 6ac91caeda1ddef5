"""Copies figures and events to TensorBoard; needs the extra `tensorboard`, and not torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamcl.errors import MissingExtra
from streamcl.protocols import State
from streamcl.sinks.event_files import TENSORBOARD, redact_event_files
from streamcl.sinks.figures import figures, message
from streamcl.sinks.redaction import RedactionTarget


def tensorboard_sink(folder: Path) -> TensorBoardSink:
    """Return the sink of a run directory; its files lie in `tensorboard/`."""
    return TensorBoardSink(folder / TENSORBOARD)


class TensorBoardSink:
    """Writes scalars named kind/figure over the step, and events as text; never images or predictions.

    After a resume a session mark has TensorBoard discard everything that a crash left beyond the commit.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
            from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
            from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtra(
                "the sink tensorboard needs the package tensorboard",
                hint='pip install "streamcl[tensorboard]"',
            ) from error
        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._text, self._clock = text_pb, clock
        self._folder, self._new_writer = folder, event_file_writer.EventFileWriter
        self._writer = self._new_writer(str(folder))
        self._step = 0

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Send the finite figures of a metrics record, or an event's reason; anything else is left out."""
        step = int(record.get("step", self._step))
        if topic == "metrics":
            found = figures(record).items()
            values = [self._summary.Value(tag=name, simple_value=value) for name, value in found]
            self._add(step, summary=self._summary(value=values))
        elif topic == "events":
            self._add(step, summary=self._text(f"events/{record.get('kind')}", message(record)))
        self._step = max(self._step, step)

    def flush(self) -> None:
        """Write everything to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def state_dict(self) -> State:
        """Return the last step written."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have TensorBoard discard everything after that step."""
        self._step = int(state.get("step", 0))
        self._add(self._step + 1, session_log=self._session(status=self._session.START))

    def redact(self, target: RedactionTarget) -> int:
        """Take the figures of erased parts out of every file; return how many files changed.

        Writing goes on in a new file. Events hold no names.
        """
        self._writer.close()
        try:
            return redact_event_files(self._folder, target.parts)
        finally:
            self._writer = self._new_writer(str(self._folder))

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event(wall_time=self._clock(), step=step, **content))
