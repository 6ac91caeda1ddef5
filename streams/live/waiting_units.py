"""The records, labels and requests of a live source that wait for the event that they become."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from streamcl.events import ForgetRequest
from streamcl.requests.label import Label
from streamcl.sources.live_reader import RecordKey
from streams.offsets import Record, is_full

LiveUnit: TypeAlias = Record | Label | ForgetRequest


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One unit, and when it came.

    keys: its own, after those of arrivals just before it that bring nothing into the stream.
    """

    unit: LiveUnit
    keys: tuple[RecordKey, ...]
    came: float


class WaitingUnits:
    """Units in the order of their arrival; each is an item of the next event, or the event itself."""

    def __init__(self) -> None:
        self._units = deque[_Waiting]()
        self._without_unit: tuple[RecordKey, ...] = ()  # since the last unit, of what brings nothing

    def __len__(self) -> int:
        return len(self._units)

    @property
    def first_came(self) -> float | None:
        """When the first of them came, in seconds of the source's clock; None where none waits."""
        return self._units[0].came if self._units else None

    @property
    def records(self) -> list[Record]:
        """Those that are records."""
        return [each.unit for each in self._units if not isinstance(each.unit, ForgetRequest | Label)]

    def add(self, key: RecordKey, units: Iterable[LiveUnit], came: float) -> None:
        """Add the units of one arrival, of which there may be none."""
        keys = (*self._without_unit, key)
        self._without_unit = keys
        for unit in units:
            self._units.append(_Waiting(unit, keys, came))
            self._without_unit, keys = (), (key,)

    def before_request(self, size: int) -> int:
        """Return how many records and labels wait before the first request, up to a full batch of `size`."""
        counts = {True: 0, False: 0}
        for count, each in enumerate(self._units):
            if isinstance(each.unit, ForgetRequest) or max(counts.values()) == size:
                return count
            counts[isinstance(each.unit, Label)] += 1
        return len(self._units)

    def make_full_batch(self, count: int, size: int) -> bool:
        """Return whether the first `count` units fill a batch of `size`."""
        units = (each.unit for each in islice(self._units, count))
        return is_full([each for each in units if not isinstance(each, ForgetRequest)], size)

    def keys(self, count: int) -> tuple[RecordKey, ...]:
        """Return the keys of the first `count` units."""
        return tuple(key for each in islice(self._units, count) for key in each.keys)

    def take(self, count: int) -> list[LiveUnit]:
        """Remove the first `count` units and return them; with 0, what brought no unit is passed too."""
        if not count:
            self._without_unit = ()
        return [self._units.popleft().unit for _ in range(count)]
