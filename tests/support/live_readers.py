"""A live reader whose records come when a script says, and the clock that it goes by."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from streamcl.errors import BadRecord, SourceError
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival


class Clock:
    """Time that passes only where a reader waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ScriptedReader:
    """Brings the values of a script at their times; a log of everything that was ever sent is kept.

    script: pairs (second, value); a value is put on the log when its time has come. The key is its place.
    gone: places of records that cannot be read again.
    """

    name = "scripted"

    def __init__(
        self,
        script: Sequence[tuple[float, Any]],
        clock: Clock,
        *,
        ends: bool = False,
        gone: Sequence[int] = (),
    ) -> None:
        self.script, self.clock, self.ends, self.gone = list(script), clock, ends, set(gone)
        self.acknowledged: list[Mapping[str, Any]] = []
        self.read, self.next, self.is_open = 0, 0, False

    guarantee = DeliveryGuarantee("exactly_once", "the script is kept")

    def open(self, position: Mapping[str, Any] | None) -> None:
        assert not self.is_open
        self.is_open = True
        self.next = self.read = 0 if position is None else position["next"]

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        until = self.clock.now + timeout
        due = [at for at, _ in self.script[self.read : self.read + 1]]
        if not due and self.ends:
            return None
        if not due or due[0] > until:
            self.clock.now = until
            return ()
        self.clock.now = max(self.clock.now, due[0])
        found = []
        while self.read < len(self.script) and self.script[self.read][0] <= self.clock.now:
            found.append(Arrival(self.script[self.read][1], self.read))
            self.read += 1
        return found

    def replay(self, keys: Sequence[int]) -> Sequence[Arrival]:
        if list(keys) != list(range(self.read, self.read + len(keys))):
            raise SourceError(f"{keys} do not follow {self.read}")
        self.read += len(keys)
        lost = BadRecord("gone")
        return [Arrival(lost if key in self.gone else self.script[key][1], key) for key in keys]

    def advance(self, keys: Sequence[int]) -> None:
        self.next = keys[-1] + 1

    def position(self) -> dict[str, Any]:
        return {"next": self.next}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        self.acknowledged.append(position)

    def fetch(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        records = [value for _, value in self.script[: self.next] if isinstance(value, dict)]
        yield from ((each["id"], each) for each in records if each["id"] in ids)

    def lag(self) -> int:
        return len(self.script) - self.next

    def close(self) -> None:
        self.is_open = False


def record(number: int) -> dict[str, Any]:
    """A record that depends on its number alone."""
    image = np.full((4, 4, 3), number % 256, np.uint8)
    return {"image": image, "label": "ab"[number % 2], "id": f"r{number}"}
