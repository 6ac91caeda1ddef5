"""Ranks as threads of one process, for tests of sources that several ranks read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads:
    """A process group whose ranks are threads."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=120)
        self._values: list[Any] = [None] * world
        self.members = [Member(self, rank) for rank in range(world)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def each(self, work: Callable[[Any], Any]) -> list[Any]:
        """What the work of each rank returned, or raised."""
        with ThreadPoolExecutor(self.world) as pool:
            futures = [pool.submit(work, member) for member in self.members]
            return [future.exception() or future.result() for future in futures]


class Member:
    def __init__(self, group: Threads, rank: int) -> None:
        self._group, self.rank, self.world_size = group, rank, group.world

    def all_gather_object(self, value: Any) -> list[Any]:
        return self._group.exchange(self.rank, value)
