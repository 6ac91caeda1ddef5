"""An open run: iterate it, stop it, submit requests to it, and read its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from streamcl.capabilities.declaration import state_for_predictions
from streamcl.config.options.learner import learner_name
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.errors import ConfigError, ForgettingError
from streamcl.evaluation.throughput import Throughput
from streamcl.events import Batch, ForgetRequest, PredictionRecord, Sample
from streamcl.forgetting.service import ForgettingService
from streamcl.nn.device import Compute
from streamcl.processor.loop import StreamProcessor
from streamcl.protocols import Learner, State
from streamcl.runs.directory import SUMMARY
from streamcl.runs.learner import export_learner
from streamcl.runs.summary import summarise, timing
from streamcl.sources.appending import Appendable
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage import files
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints


@dataclass(slots=True)
class Run:
    """A run with its directory. Iterate it to run it: it yields a PredictionRecord per sample.

    Use it as a context manager. Leaving it commits what has passed and, where the stream has ended, writes
    the summary and the report (`finish`); after an exception neither is done, as after a crash. Either way it
    releases the directory's lock and the files. On several ranks each has one; only the first has the
    directory, and `forgetting`. `stack` closes what the run has opened. written: the step of the summary.
    ended: whether samples were learned by `learn` after the stream had ended.
    """

    config: RunConfig
    folder: Path
    compute: Compute
    source: SourceWrapper
    learner: Learner
    processor: StreamProcessor
    throughput: Throughput
    forgetting: ForgettingService | None
    checkpoints: Checkpoints
    saver: BackgroundSaver
    group: ProcessGroup
    stack: ExitStack
    written: int | None = None
    ended: bool = False

    def __iter__(self) -> Iterator[PredictionRecord]:
        return self.processor.run()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.save()
        finally:
            self.close()

    def learn(self, samples: Sequence[Sample]) -> tuple[PredictionRecord, ...]:
        """Learn a batch that does not come from the source; return its predictions, made before.

        Its samples get the next offsets, and are evaluated, held out, recorded and erased like all others.
        The source goes on after them. They are in a checkpoint with the next commit (see `save`), and are to
        be given again where the process dies before. Raise ConfigError on several ranks.
        """
        if not isinstance(self.source, Appendable):
            raise ConfigError("samples can be put into a run of one process only", hint="start no torchrun")
        self.processor.forget()
        if self.processor.progress.finished:
            self.processor.reopen()
            self.ended = True
        self.source.append(len(samples))
        return self.processor.process(Batch(self.processor.progress.offset, tuple(samples)))

    def save(self) -> None:
        """Commit what has passed; a checkpoint has it on return. At the end also write summary and report."""
        if self.ended:
            self.processor.finish()
            self.ended = False
        self.processor.commit_pending()
        self.saver.wait()
        progress = self.processor.progress
        written = self.written == progress.step and (self.folder / SUMMARY).exists()
        if progress.finished and self.group.is_main and not written:
            self.finish()

    def stop(self) -> None:
        """End the run after the current event, with a commit. Safe to call from a signal handler.

        On several ranks all of them end before the next event, whichever is stopped.
        """
        if self.group.world_size == 1:
            self.processor.stop()
        self.source.interrupt()

    def close(self) -> None:
        """Wait for the checkpoint being written and release the directory."""
        self.stack.close()

    @property
    def length(self) -> int | None:
        """Records in the stream, where that is known."""
        return self.source.info.length

    def figures(self) -> str:
        """Return speed, accuracy and segment in a few words."""
        speed, accuracy = self.throughput.images_per_s, self.processor.parts.scores.window_accuracy
        parts = [
            f"{speed:.0f} images/s" if speed else "",
            f"accuracy {accuracy:.1%}" if accuracy is not None else "",
            f"segment {self.processor.shift_handler.segment + 1}",
        ]
        return "  ".join(part for part in parts if part)

    def summary(self) -> dict[str, Any]:
        """Return the figures so far, as in summary.json."""
        return summarise(
            name=self.config.name,
            learner=learner_name(self.config.learner),
            processor=self.processor,
            batch_size=self.config.batch.largest,
            timing=timing(self.throughput, self.compute, self.group.world_size),
        )

    def prediction_state(self) -> State:
        """Return the part of the learner's state by which it predicts, without data of stored samples."""
        return state_for_predictions(self.learner, self.learner.state_dict())

    def forget(self, **request: Any) -> str:
        """Submit a request to forget; it is durable on return, and carried out before the next batch.

        request: the fields of `streamcl.ForgetRequest`. Return the request's id, which names its receipt.
        Raise ForgettingError where the request is not valid.
        """
        return self._service.submit(ForgetRequest(**request))

    def retry_request(self, name: str) -> str:
        """Have a failed request, named by its id or key, carried out before the next batch; return its id.

        Raise ForgettingError where there is no such request, or where it is done or refused.
        """
        return self._service.retry(name)

    @property
    def _service(self) -> ForgettingService:
        if self.forgetting is None:
            raise ForgettingError(f"rank {self.group.rank} keeps no ledger", hint="call it on rank 0")
        return self.forgetting

    def finish(self) -> dict[str, Any]:
        """Write summary.json, adapter/ and report.html; return the summary."""
        from streamcl.report.page import write_report  # with matplotlib: 30 MiB that a run needs at its end

        summary = self.summary()
        files.atomic_write(self.folder / SUMMARY, json.dumps(summary, indent=2).encode())
        export_learner(self.learner, self.config, self.folder / "adapter")
        write_report(self.folder)
        self.written = self.processor.progress.step
        return summary
