"""How detected shifts compare with the true ones: found, missed, false alarms, and how late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class ShiftScore:
    """True shifts with the detections that answer them.

    matches: each true shift's offset with that of its detection, or None where it was missed.
    false_offsets: detections that answer no true shift.
    """

    matches: tuple[tuple[int, int | None], ...]
    false_offsets: tuple[int, ...]

    @property
    def delays(self) -> tuple[int, ...]:
        """Samples from each found shift to its detection."""
        return tuple(detected - true for true, detected in self.matches if detected is not None)

    @property
    def found(self) -> int:
        """True shifts that were detected."""
        return len(self.delays)

    @property
    def missed(self) -> int:
        """True shifts that were not detected in time."""
        return len(self.matches) - self.found

    @property
    def false_alarms(self) -> int:
        """Detections that answer no true shift."""
        return len(self.false_offsets)

    def summary(self) -> dict[str, Any]:
        """Return the "shifts" part of summary.json."""
        detected = [offset for _, offset in self.matches if offset is not None]
        return {
            "true": [true for true, _ in self.matches],
            "detected": sorted([*detected, *self.false_offsets]),
            "matches": [list(match) for match in self.matches],
            "false_offsets": list(self.false_offsets),
            "found": self.found,
            "missed": self.missed,
            "false_alarms": self.false_alarms,
            "delays": list(self.delays),
        }


def match_shifts(true: Sequence[int], detected: Sequence[int], tolerance: int) -> ShiftScore:
    """Match each true shift with the first detection within `tolerance` samples and before the next shift.

    Offsets are samples from the beginning; a detection's is the end of the batch whose loss showed it, so
    that it never lies before the shift that it answers. Every other detection is a false alarm.

    >>> score = match_shifts([100, 500], [60, 120, 130], tolerance=50)
    >>> score.matches, score.false_offsets, score.delays
    (((100, 120), (500, None)), (60, 130), (20,))
    """
    shifts, alarms = sorted(set(true)), sorted(detected)
    ends = [min(shift + tolerance + 1, after) for shift, after in pairwise(shifts)]
    ends += [shifts[-1] + tolerance + 1] if shifts else []
    matches: list[tuple[int, int | None]] = []
    for shift, end in zip(shifts, ends, strict=True):
        answer = next((alarm for alarm in alarms if shift <= alarm < end), None)
        if answer is not None:
            alarms.remove(answer)
        matches.append((shift, answer))
    return ShiftScore(tuple(matches), tuple(alarms))
