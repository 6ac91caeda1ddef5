"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from streamcl.protocols import State

REMEMBERED = 1000
"""Offsets of shifts, and of consolidations, that a run's state holds; events.jsonl has all of them."""


@dataclass(slots=True)
class Progress:
    """How far a run has come. Offsets count records; `segment` counts detected shifts.

    shifts, consolidations: the offsets of the newest; `segment` and `consolidated` count all there were.
    gathered: losses of samples, too few so far for the detector.
    """

    offset: int = 0
    step: int = 0
    segment: int = 0
    classes: int = 0
    quarantined: int = 0
    dropped: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    pending_losses: list[float] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    consolidations: list[int] = field(default_factory=list)
    consolidated: int = 0
    committed: int = 0
    last_evaluated: int = -1
    finished: bool = False

    @property
    def position(self) -> dict[str, int]:
        """Where the run stands, as records tell it."""
        return {"step": self.step, "offset": self.offset}

    def shift(self) -> None:
        """Count a shift here; a new segment begins."""
        self.segment += 1
        self.shifts = _newest(self.shifts, self.offset)

    def consolidate(self) -> None:
        """Count a consolidation here."""
        self.consolidated += 1
        self.consolidations = _newest(self.consolidations, self.offset)

    def state_dict(self) -> State:
        """All of it."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state` tells; what it lacks is as at the beginning."""
        earlier = Progress(**state)
        for each in fields(self):
            setattr(self, each.name, getattr(earlier, each.name))


def _newest(offsets: Sequence[int], offset: int) -> list[int]:
    """The offsets with one more, without the oldest where they would be more than REMEMBERED."""
    return [*offsets, offset][-REMEMBERED:]
