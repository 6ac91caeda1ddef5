"""The models that an audit by further runs compares, one run of the stream each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from streamcl.audit.closed_form import Plan
from streamcl.audit.closed_form_models import leave_outs
from streamcl.audit.mixup import Mixup
from streamcl.audit.questions import Answer, Questions
from streamcl.audit.retraining import Reruns
from streamcl.audit.stream_split import SortedStream
from streamcl.events import ForgetRequest
from streamcl.protocols import Learner

logger = logging.getLogger(__name__)

Model = TypeVar("Model")
Without = frozenset[int]
"""The offsets of retained samples that one model goes without."""


class Trials:
    """Makes the models one by one, and asks each when its run has ended; `made`: how many there were."""

    def __init__(
        self,
        stream: SortedStream,
        reruns: Reruns,
        questions: Questions,
        plan: Plan,
        *,
        most: int,
    ) -> None:
        """most: how many runs there will be at most, for who waits."""
        self.made, self._most = 0, most
        self._stream, self._reruns, self._questions = stream, reruns, questions
        self._offsets = np.array(sorted(stream.kept))
        self._plan, self._rng = plan, np.random.default_rng(plan.seed)

    def retrained(self) -> Answer:
        """Of the model that learned all that was retained."""
        label = self._stream.labels(frozenset(), forgotten=False)
        answer = self._run("retrained on all that is kept", label, self._questions.ask)
        assert answer is not None
        return answer

    def group(
        self, what: str, *, forgotten: bool, request: ForgetRequest | None = None
    ) -> tuple[list[Answer], list[Without]]:
        """Of as many models as planned, each without another share of the retained samples, and that share.

        Fewer where a request ended without an erasure.
        """
        found: tuple[list[Answer], list[Without]] = [], []
        for number, without in self._shares():
            label = self._stream.labels(without, forgotten=forgotten)
            answer = self._run(f"{what}, {number}", label, self._questions.ask, request)
            if answer is not None:
                found[0].append(answer)
                found[1].append(without)
        return found

    def mixed_up(self, mixup: Mixup, request: ForgetRequest) -> tuple[list[float], list[float], list[float]]:
        """Confusion of models that never saw the swapped samples, that learned them, and that forgot them.

        Empty where the method cannot forget these samples.
        """
        never, before, after = [], list[float](), []
        for number, without in self._shares():
            swapped = self._stream.labels(without - mixup.wrong.keys(), forgotten=False, instead=mixup.wrong)
            seen = len(before)
            answer = self._run(
                f"made to forget swapped labels, {number}",
                swapped,
                mixup.confusion,
                request,
                lambda learner: before.append(mixup.confusion(learner)),
            )
            if answer is None:
                del before[seen:]
                break  # refused or failed; others would be too
            after.append(answer)
        for number, without in self._shares() if after else ():
            label = self._stream.labels(without | mixup.wrong.keys(), forgotten=False)
            confused = self._run(f"without what was swapped, {number}", label, mixup.confusion)
            assert confused is not None
            never.append(confused)
        return never, before, after

    def _shares(self) -> list[tuple[str, Without]]:
        count = self._plan.reruns
        rows = leave_outs(count, len(self._offsets), self._plan.left_out, self._rng).numpy()
        return [(f"{i} of {count}", frozenset(self._offsets[row].tolist())) for i, row in enumerate(rows, 1)]

    def _run(
        self,
        what: str,
        label: Callable[[int], str | None],
        then: Callable[[Learner], Model],
        request: ForgetRequest | None = None,
        before: Callable[[Learner], None] | None = None,
    ) -> Model | None:
        self.made += 1
        logger.info("run %d of at most %d: %s", self.made, self._most, what)
        return self._reruns.model(label, then, request, before)
