"""How far a run has come, and how parts of the loop keep their counters."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar

from streamcl.events import Batch
from streamcl.protocols import State


class Counters:
    """A part of the loop whose state is some of its attributes: numbers, and lists of numbers."""

    COUNTERS: ClassVar[tuple[str, ...]]

    def state_dict(self) -> State:
        """Return the counters by name."""
        return {name: copy(getattr(self, name)) for name in self.COUNTERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counters of another process."""
        for name in self.COUNTERS:
            setattr(self, name, copy(state[name]))


class Progress(Counters):
    """How far a run has come; only the loop changes it.

    offset: records that have passed. step: batches that have passed. committed: the offset of the last
    commit. finished: whether the stream has ended.
    """

    COUNTERS = ("offset", "step", "committed", "finished")

    def __init__(self) -> None:
        self.offset = self.step = self.committed = 0
        self.finished = False

    @property
    def position(self) -> dict[str, int]:
        """Where the run stands, as in every record of the log."""
        return {"step": self.step, "offset": self.offset}

    def advance(self, batch: Batch) -> None:
        """Count a batch that has been learned."""
        self.step += 1
        self.offset = batch.end
