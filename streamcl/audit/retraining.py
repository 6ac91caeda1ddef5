"""Retrains models by further runs of the stream, without some samples or with other labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Generic, TypeVar

import numpy as np

from streamcl.audit.data import AuditConfig, draw_left_out
from streamcl.audit.label_swap import LabelSwap
from streamcl.audit.stream_split import StreamSplit, with_offsets
from streamcl.config.options.outputs import EvaluateOptions, ReportOptions
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS
from streamcl.events import Batch, Event, ForgetRequest
from streamcl.factory.source import build_source
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.nn.backbone import Backbone
from streamcl.protocols import Learner, Source
from streamcl.runs.assemble import assemble
from streamcl.runs.open import begin_or_restore
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage.files import TEMPORARY, discard

logger = logging.getLogger(__name__)

Output = TypeVar("Output")
Result = TypeVar("Result")
FOLDER_PREFIX = f"{TEMPORARY}audit-"
NO_EVALUATION = EvaluateOptions(
    hold_out=0.0,
    max_held_out=1,
    every_samples=None,
    at_part_end=False,
    max_per_part=None,
    at_stream_end=False,
)


class RelabelledSource(SourceWrapper):
    """Replays a source with other labels, and with one request to forget, or none, in place of its own.

    Args:
        source: the run's.
        label: of the sample at an offset; None where it is not to be learned: the learner then sees it as
            any image without a label.
        end: offset at which the stream ends.
        request: yielded before the batch at its offset, or at the end.
        on_request: called before the request is yielded.
    """

    def __init__(
        self,
        source: Source,
        label: Callable[[int], str | None],
        end: int,
        request: ForgetRequest | None = None,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(source)
        self._label, self._end, self._request = label, end, request
        self._on_request = on_request

    def __iter__(self) -> Iterator[Event]:
        waiting = self._request
        for event in self._source:
            if not isinstance(event, Batch):
                continue
            if waiting is not None and event.offset >= waiting.offset:
                self._on_request()
                yield waiting
                waiting = None
            if event.offset >= self._end:
                break
            samples = [replace(each, label=self._label(offset)) for offset, each in with_offsets(event)]
            yield replace(event, samples=tuple(samples))
        if waiting is not None:
            self._on_request()
            yield waiting


@dataclass(frozen=True, slots=True)
class Retraining:
    """Runs a stream again up to offset `end`, with the run's configuration, in a temporary folder.

    The seed is the run's, so that references differ from it only by what they have learned, and an erasure is
    judged beside the closest models there are. A folder that a crash leaves behind is removed when the run is
    next opened or audited.
    """

    config: RunConfig
    folder: Path
    backbone: Backbone
    end: int

    def run(
        self,
        label: Callable[[int], str | None],
        evaluate: Callable[[Learner], Result],
        request: ForgetRequest | None = None,
        before_request: Callable[[Learner], None] | None = None,
    ) -> Result | None:
        """Run the stream once and return `evaluate(learner)`; None where the request was not carried out.

        Args:
            label: of the sample at an offset, None where it is not to be learned.
            evaluate: called with the learner at the end.
            request: to carry out at its offset.
            before_request: called with the learner just before the request.
        """
        folder = Path(mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=self.folder))
        with ExitStack() as stack:
            stack.callback(discard, folder)

            def on_request() -> None:
                if before_request is not None:
                    before_request(run.learner)

            run = assemble(
                self._settings(folder),
                folder,
                stack,
                vit=lambda *_: self.backbone,
                group=SINGLE_PROCESS,
                stream=lambda *asked: RelabelledSource(
                    build_source(*asked), label, self.end, request, on_request
                ),
            )
            begin_or_restore(run, None)
            for _ in run:
                pass
            outcomes = {each.request: each.outcome for _, each in read_receipts(folder)}
            if request is not None and outcomes.get(request.id) != "done":
                return None
            return evaluate(run.learner)

    def _settings(self, folder: Path) -> RunConfig:
        quiet = self.config.forgetting.model_copy(update={"requests": [], "keep_statistics": None})
        changed: Mapping[str, Any] = {
            "run_dir": str(folder),
            "checkpoint": None,
            "evaluate": NO_EVALUATION,
            "report": ReportOptions(samples=0, title=None),
            "forgetting": quiet,
            "sinks": [],
        }
        return self.config.model_copy(update=changed)


class RetrainedModels(Generic[Output]):
    """Makes the models of an audit one by one, and evaluates each at the end of its run.

    evaluate: returns the figures that are compared of a learner; limit: number of runs at most, for the log.
    """

    def __init__(
        self,
        split: StreamSplit,
        retraining: Retraining,
        evaluate: Callable[[Learner], Output],
        config: AuditConfig,
        *,
        limit: int,
    ) -> None:
        self.runs, self._limit = 0, limit
        self._split, self._retraining, self._evaluate = split, retraining, evaluate
        self._offsets = np.array(sorted(split.retained_labels))
        self._config, self._rng = config, np.random.default_rng(config.seed)

    def retrained(self) -> Output:
        """Return the output of the model of all retained samples."""
        label = self._split.labels(frozenset(), forgotten=False)
        output = self._next("retrained on all retained samples").run(label, self._evaluate)
        assert output is not None
        return output

    def group(
        self, name: str, *, forgotten: bool, request: ForgetRequest | None = None
    ) -> tuple[list[Output], list[frozenset[int]]]:
        """Return the outputs of the configured number of models, and the offsets that each goes without.

        Each goes without another share of the retained samples. There are fewer where a request was not
        carried out.
        """
        outputs, left_out = list[Output](), list[frozenset[int]]()
        for number, without in self._shares():
            label = self._split.labels(without, forgotten=forgotten)
            output = self._next(f"{name}, {number}").run(label, self._evaluate, request)
            if output is not None:
                outputs.append(output)
                left_out.append(without)
        return outputs, left_out

    def confusions(
        self, swap: LabelSwap, request: ForgetRequest
    ) -> tuple[list[float], list[float], list[float]]:
        """Return the confusion of models that never saw the swapped samples, learned them, and erased them.

        Empty where the method cannot erase these samples.
        """
        never, before, after = [], list[float](), []
        for number, without in self._shares():
            labels = self._split.labels(without - swap.wrong.keys(), forgotten=False, relabelled=swap.wrong)
            seen = len(before)
            output = self._next(f"made to forget swapped labels, {number}").run(
                *(labels, swap.confusion, request), lambda learner: before.append(swap.confusion(learner))
            )
            if output is None:
                del before[seen:]
                break  # the method refused or failed, and would again
            after.append(output)
        for number, without in self._shares() if after else ():
            labels = self._split.labels(without | swap.wrong.keys(), forgotten=False)
            confusion = self._next(f"without the swapped samples, {number}").run(labels, swap.confusion)
            assert confusion is not None
            never.append(confusion)
        return never, before, after

    def _shares(self) -> list[tuple[str, frozenset[int]]]:
        count = self._config.reruns
        rows = draw_left_out(count, len(self._offsets), self._config.left_out, self._rng).numpy()
        return [(f"{i} of {count}", frozenset(self._offsets[row].tolist())) for i, row in enumerate(rows, 1)]

    def _next(self, name: str) -> Retraining:
        """Count and log a run that is about to begin."""
        self.runs += 1
        logger.info("run %d of at most %d: %s", self.runs, self._limit, name)
        return self._retraining


def remove_leftovers(folder: Path) -> None:
    """Remove the folders that killed audits left in a run directory; those of running audits stay."""
    for path in folder.glob(f"{FOLDER_PREFIX}*"):
        owner = path.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if not (owner.isdigit() and _is_alive(int(owner))):
            discard(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a process of another user
    return True
