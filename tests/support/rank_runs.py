"""Runs on several ranks for the tests: one forked command line a rank, with the environment of torchrun."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_runs
from fault_runs import Done, Process, start
from fault_sources import Pictures
from ports import free_port

from streamcl.errors import SourceError


def write_config(folder: Path, learner: str, **changes: Any) -> Path:
    """stream.yaml: a short run on a tiny ViT that also evaluates."""
    return fault_runs.write_config(folder, learner=learner, **{"evaluate": {"every_samples": 32}, **changes})


def start_ranks(world: int, *arguments: object, folder: Path, hooks: Any = None) -> list[Process]:
    """Begin `streamcl ARGUMENTS` once a rank; `hooks` are given to the ranks that it names."""
    return [
        start(*arguments, folder=folder, hooks=(hooks or {}).get(rank, ()), env=env)
        for rank, env in enumerate(environments(world))
    ]


def environments(world: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each rank."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    named = {**address, "GLOO_SOCKET_IFNAME": "lo"}
    return [{**named, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def streamcl_ranks(world: int, *arguments: object, folder: Path, **options: Any) -> list[Done]:
    """Run `streamcl ARGUMENTS` on so many ranks to the end of all."""
    return [process.wait(600) for process in start_ranks(world, *arguments, folder=folder, **options)]


class DiesOnce(Pictures):
    """Pictures; the process of one rank dies when it comes to a record, once."""

    def __init__(self, records: int, rank: int, at: int) -> None:
        super().__init__(records)
        self.rank, self.at = rank, at

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.at and int(os.environ["RANK"]) == self.rank and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class FailsOn(Pictures):
    """Pictures, of which one rank loses sight."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 40 and int(os.environ["RANK"]) == self.rank:
            raise SourceError(f"the camera of rank {self.rank} is gone")
        return super().__getitem__(index)


def own_camera() -> Iterator[dict[str, Any]]:
    """Another stream on each rank."""
    for index in range(32):
        yield {**Pictures()[index], "id": f"{os.environ['RANK']}-{index}"}


class Partitions:
    """Parts of different lengths, of which each rank reads one."""

    def shard(self, rank: int, world: int) -> list[dict[str, Any]]:
        assert world in (2, 3)
        return [{**Pictures()[index], "id": f"{rank}-{index}"} for index in range((30, 44, 0)[rank])]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(())


# -- hooks: called in the forked process, before the command line -------------------------------------------


def die_at(batch: int) -> None:
    """Die by SIGKILL when batch number `batch` is to be learned."""
    _at(batch, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang_at(batch: int) -> None:
    """Sleep for ever there."""
    _at(batch, lambda: time.sleep(3600))


def _at(batch: int, do: Callable[[], Any]) -> None:
    from streamcl.distributed.agreement import ReplicatedLearner

    learn, calls = ReplicatedLearner.learn, [0]

    def counted(self: Any, given: Any) -> Any:
        calls[0] += 1
        if calls[0] == batch:
            do()
        return learn(self, given)

    ReplicatedLearner.learn = counted  # type: ignore[method-assign]
