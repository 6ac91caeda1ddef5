"""Live sources that ranks divide: which batches made a step is logged, and is the same after a crash."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.errors import CheckpointError, SourceError
from streamcl.events import Event, Sample
from streamcl.protocols import Collective, Fetch, Source, State
from streamcl.sources.wrapper import SourceWrapper
from streams.distributed.messages import RankMessage
from streams.distributed.sharded import Sharded
from streams.live.arrival_log import ArrivalLog, CutBatch
from streams.live.source import LiveSource
from streams.offsets import Take

logger = logging.getLogger(__name__)

Merge: TypeAlias = Callable[[Sequence[State | None]], State | None]
"""See `streamcl.sources.live_reader.ShardableReader.merge`."""

SINGLE_LOG = "arrivals.log"
"""The batches of a live source that one process reads."""
STEP_LOG = "arrivals-steps.log"
"""Which ranks' batches made each step."""


class ProcessLogs:
    """The logs of one process: its batches, and on rank 0 also the ranks of each step.

    Args:
        batches: those of the live source that this process reads.
        rank: this process's; None: there is one process.
    """

    def __init__(self, batches: ArrivalLog, rank: int | None) -> None:
        self.batches = batches
        self.steps = ArrivalLog(batches.path.with_name(STEP_LOG)) if rank == 0 else None
        self._is_main = rank in {None, 0}

    @classmethod
    def of_rank(cls, folder: Path, rank: int) -> ProcessLogs:
        """Return the logs of one rank among several, in the run's folder."""
        return cls(ArrivalLog(folder / f"arrivals-{rank}.log"), rank)

    def clear(self) -> None:
        """Remove all entries, which another number of processes has written; rank 0 those of all ranks."""
        own = [log for log in (self.batches, self.steps) if log is not None]
        for log in own:
            log.drop_before(sys.maxsize)
        for path in self.batches.path.parent.glob("arrivals*.log") if self._is_main else ():
            if path not in [log.path for log in own]:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the log of steps; a source closes that of its batches."""
        if self.steps is not None:
            self.steps.close()


@dataclass(frozen=True, slots=True)
class LiveShard:
    """The shard of one rank.

    merge: returns the position that the shards with given positions have reached together. logs: None where
    the run cannot be resumed.
    """

    source: LiveSource
    merge: Merge
    logs: ProcessLogs | None


class LiveSharded(Sharded):
    """Shards of a live source, each read by one rank.

    A step takes the batches of the ranks that have one; which they were is logged on rank 0 before the step,
    and repeated after a restart, as each rank repeats its own batches. Another number of ranks continues from
    the checkpoint: each new shard begins where the former ones have stopped.

    Args:
        read_ahead: the shard of this rank, its offsets checked, read ahead in a thread.
        shard: the same, as it is.
        undivided: the source before it was divided; it fetches samples by their ids, from all shards.
        group: the ranks.
        on_stop: called on every rank once one has been interrupted.
    """

    def __init__(
        self,
        read_ahead: Source,
        shard: LiveShard,
        undivided: LiveSource,
        group: Collective,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(read_ahead, undivided, group, on_stop)
        self._undivided = undivided
        self._live, self._merge, self._logs = shard.source, shard.merge, shard.logs
        self._fresh = read_ahead.state_dict()
        self._steps = 0
        self._again = deque[Sequence[int]]()  # ranks of the steps that are repeated

    def __iter__(self) -> Iterator[Event]:
        log = self._logs.steps if self._logs is not None else None
        steps = [] if log is None else [each.keys for each in log.since(self._steps)]
        logged = self._group.all_gather_object((steps, self._live.batches_logged))
        self._again = deque(logged[0][0])
        for rank, (_, batches) in enumerate(logged):
            if batches < sum(rank in ranks for ranks in self._again):
                raise CheckpointError(
                    f"rank {rank} lacks its log of the batches that were learned after the checkpoint",
                    hint="start each rank where it ran, or with a run directory that all share; without "
                    f"{STEP_LOG} what comes is divided into batches anew",
                )
        yield from super().__iter__()

    @property
    def fetch(self) -> Fetch | None:
        """Yields samples by their ids that any rank has read; None where the source cannot."""
        return None if self._undivided.fetch is None else self._fetch

    def state_dict(self) -> State:
        """Return the next offset, the position of every shard, and the number of steps."""
        return {**super().state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position, which any number of processes has left."""
        world = self._group.world_size
        if "shards" not in state or len(state["shards"]) != world:
            if self._logs is not None:
                self._logs.clear()
            position = undivided_position(state, self._fresh, self._merge)
            logger.warning("the shards of %s are divided anew among %d ranks", self.info.name, world)
            state = {"offset": state["offset"], "shards": [position] * world, "steps": 0}
        super().load_state_dict(state)
        self._steps = state["steps"]

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass on this rank's part of a position."""
        super().acknowledge(position)
        if self._logs is not None and self._logs.steps is not None:
            self._logs.steps.drop_before(position["steps"])

    def close(self) -> None:
        """Stop reading, and close the log."""
        super().close()
        if self._logs is not None:
            self._logs.close()

    def _fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Fetch samples with a reader that is opened, for so long, where all shards have come to."""
        position = undivided_position(self.state_dict(), self._fresh, self._merge)
        self._undivided.load_state_dict(position["source"])
        try:
            if (fetch := self._undivided.fetch) is not None:
                yield from fetch(ids)
        finally:
            self._undivided.close()

    def _choose(self, messages: Sequence[RankMessage]) -> Sequence[int]:
        """Return the ranks whose events are next: those of the log, once all of them have theirs."""
        if self._again:
            ready = {rank for rank, each in enumerate(messages) if each.kind in {"batch", "request"}}
            if not ready.issuperset(self._again[0]):
                return ()
            ranks = self._again.popleft()
        else:
            ranks = super()._choose(messages)
            if ranks and self._logs is not None and self._logs.steps is not None:
                self._logs.steps.append(CutBatch(self._steps, tuple(ranks)))
        self._steps += bool(ranks)
        return ranks


class Rejoined(SourceWrapper):
    """A live source that one process reads, and that can go on where several ranks have stopped.

    Args:
        source: the live source, its offsets checked.
        merge: see `LiveShard`.
        logs: None where the run cannot be resumed.
    """

    def __init__(self, source: Source, merge: Merge, logs: ProcessLogs | None) -> None:
        super().__init__(source)
        self._merge, self._logs = merge, logs

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that one process or several ranks have left."""
        if "shards" in state:
            if self._logs is not None:
                self._logs.clear()
            state = undivided_position(state, self._source.state_dict(), self._merge)
        super().load_state_dict(state)


class LiveTake(Take):
    """The first records of a live source, which other numbers of processes may continue.

    Where the limit has fallen into a batch, the remaining part of it is known to as many processes only.

    Args:
        source: the live source, of one process or of ranks.
        samples: the limit.
        processes: how many read the source.
    """

    def __init__(self, source: Source, samples: int, processes: int) -> None:
        super().__init__(source, samples)
        self._processes = processes

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state under this or another limit. Raise SourceError where a batch was split."""
        before = len(state["source"].get("shards", [None]))
        if state["offset"] != state["source"]["offset"] and before != self._processes:
            raise SourceError(
                f"max_samples ended the run within a batch of {before} processes; now there are "
                f"{self._processes}",
                hint=f"continue with {before} until the next checkpoint, then with as many as you like",
            )
        super().load_state_dict(state)


def undivided_position(state: Mapping[str, Any], fresh: State, merge: Merge) -> State:
    """Return the position of a live source that reads on where all shards of a state have stopped.

    Args:
        state: of `LiveSharded`, or of one process.
        fresh: the position of a checked live source before it is read.
        merge: see `LiveShard`.
    """
    shards = [each["source"] for each in state.get("shards", [state])]
    live = {
        **fresh["source"],
        "offset": state["offset"],
        "seen": list(dict.fromkeys(each for shard in shards for each in shard["seen"])),
        "reader": merge([shard["reader"] for shard in shards]),
    }
    return {**fresh, "offset": state["offset"], "source": live}
