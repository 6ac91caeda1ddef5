"""The replay of a run: its stream, read a second time from a checkpoint, for an exact erasure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.errors import CheckpointError
from streamcl.events import Batch
from streamcl.factory.parts import build_shift, detector_batch
from streamcl.factory.source import build_source
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.stream_replay import Replay
from streamcl.protocols import Learner, Source
from streamcl.sinks.fanout import Fanout
from streamcl.sources.appending import appended
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.rng_state import capture_generators, restore_generators


def unavailable_reason(config: RunConfig, source: Source) -> str | None:
    """Return why a run's stream cannot be learned again; None where it can."""
    if config.checkpoint is None:
        return "this run keeps no checkpoints"
    if config.source.class_ is not None:
        return "a source of your own may draw from the process's random generators, so it is read once"
    if config.labels is not None:
        return "labels that came after their records would come before them"
    if not source.replayable or source.info.length is None:
        return "the source is live, or read once, and cannot be read again beside the run"
    return None


class CheckpointReplay:
    """Reads a run's source a second time, from a kept checkpoint, and has the run's learner learn it again.

    saver: writes the checkpoints; None where no process works on the run, and nothing can be replayed, only
    planned.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        learner: Learner,
        checkpoints: Checkpoints,
        saver: BackgroundSaver | None = None,
    ) -> None:
        self.limit = config.forgetting.max_replay
        self._unavailable = unavailable_reason(config, source)
        self._config, self._source, self._learner = config, source, learner
        self._checkpoints, self._saver = checkpoints, saver
        self._processor: StreamProcessor | None = None
        self._replayed: Replay | None = None

    @property
    def unavailable(self) -> str | None:
        """Why the stream cannot be learned again; None where it can."""
        if self._unavailable is None and appended(self._source.state_dict()):
            return "records were learned by partial_fit, which the source does not have"
        return self._unavailable

    def attach(self, processor: StreamProcessor) -> None:
        """Name the loop whose detector an erasure replaces."""
        self._processor = processor

    def checkpoint_before(self, offset: int) -> int | None:
        """Return the offset of the newest checkpoint that no record at or after `offset` has reached."""
        found = self._newest_before(offset)
        return None if found is None else found[1]

    def run(self, start: int, end: int, filter_batch: Callable[[Batch], Batch]) -> None:
        """Make the learner the one of the checkpoint at `start`, and learn the records up to `end` again.

        Raise CheckpointError where the checkpoint is gone or damaged, SourceError where the source fails.
        """
        found = self._newest_before(start)
        if found is None or found[1] != start:
            raise CheckpointError(f"the checkpoint at record {start} is gone")
        state, generators = self._checkpoints.load(found[0]).state, capture_generators()
        try:
            self._replayed = self._replay(state, end, filter_batch)
        finally:
            restore_generators(generators)

    def finish(self) -> None:
        """Make the run's detector, and the segments that it has found, those of the replay."""
        if (replayed := self._replayed) is None or self._processor is None:
            return
        self._processor.parts.detector.load_state_dict(replayed.detector.state_dict())
        self._processor.shift_handler.load_state_dict(replayed.shift_handler.state_dict())
        self._replayed = None

    def _replay(self, state: Any, end: int, filter_batch: Callable[[Batch], Batch]) -> Replay:
        config = self._config
        with closing(build_source(config)) as source:
            source.load_state_dict(state["source"])
            replay = Replay(
                self._learner,
                build_shift(config),
                state,
                Fanout({}),
                min_samples=detector_batch(config),
                max_skipped=config.max_skipped,
            )
            replay.learn(source, end, filter_batch)
        return replay

    def _newest_before(self, offset: int) -> tuple[Path, int] | None:
        if self._saver is not None:
            self._saver.wait_until_written()
        return self._checkpoints.newest_before(offset)
