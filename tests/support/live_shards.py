"""A live reader that ranks divide: partitions whose records come at random moments."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fault_sources import Pictures

from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival


class RandomFeeds:
    """Partitions of so many records each; a poll brings a few of them, from any partition, or none.

    lengths: of the partitions. pause: longest wait in seconds before a poll that brings nothing.
    """

    name = "feeds"

    def __init__(self, lengths: Sequence[int] = (40, 30, 26), pause: float = 0.05) -> None:
        self.lengths, self.pause = list(lengths), pause
        self.own = list(range(len(self.lengths)))
        self.random = random.Random()  # differs from run to run, as arrivals do
        self.acknowledged: list[Mapping[str, Any]] = []

    guarantee = DeliveryGuarantee("exactly_once", "each partition is kept")
    fetch = None

    def shard(self, rank: int, world: int) -> RandomFeeds:
        part = RandomFeeds(self.lengths, self.pause)
        part.own = self.own[rank::world]
        return part

    @staticmethod
    def merge(positions: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
        return {name: at for position in positions for name, at in (position or {}).items()}

    def open(self, position: Mapping[str, Any] | None) -> None:
        known = position or {}
        self.taken = {each: known.get(str(each), 0) for each in self.own}
        self.read = dict(self.taken)

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        left = [each for each in self.own if self.read[each] < self.lengths[each]]
        if not left:
            return None
        if self.random.random() < 0.3:
            time.sleep(min(timeout, self.random.uniform(0, self.pause)))
            return ()
        partition = self.random.choice(left)
        count = min(self.random.randint(1, 5), self.lengths[partition] - self.read[partition])
        return [self._next(partition) for _ in range(count)]

    def replay(self, keys: Sequence[Any]) -> Sequence[Arrival]:
        found = [self._next(partition) for partition, _ in keys]
        assert [each.key for each in found] == [list(key) for key in keys]
        return found

    def advance(self, keys: Sequence[Any]) -> None:
        for partition, number in keys:
            assert number == self.taken[partition]
            self.taken[partition] = number + 1

    def position(self) -> dict[str, Any]:
        return {str(partition): number for partition, number in self.taken.items()}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        self.acknowledged.append(position)

    def lag(self) -> int:
        return sum(self.lengths[each] - self.taken[each] for each in self.own)

    def close(self) -> None:
        pass

    def _next(self, partition: int) -> Arrival:
        number = self.read[partition]
        self.read[partition] = number + 1
        picture = Pictures(1000)[100 * partition + number]
        return Arrival({**picture, "id": feed_id(partition, number)}, [partition, number])


def feed_id(partition: int, number: int) -> str:
    return f"p{partition}-{number:03}"


def all_ids(lengths: Sequence[int]) -> list[str]:
    """The ids of all records, sorted."""
    return [feed_id(each, number) for each, length in enumerate(lengths) for number in range(length)]


def keep_logs() -> None:
    """A hook: the logs of batches and steps lose nothing when a checkpoint has passed it."""
    from streams.live.arrival_log import ArrivalLog

    ArrivalLog.drop_before = lambda self, number: None  # type: ignore[method-assign]
