"""What every model of an audit by further runs is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.answers import Probes
from streamcl.audit.data import Examples, Floats
from streamcl.audit.scope import portions
from streamcl.audit.stream_split import SortedStream
from streamcl.errors import ForgettingError
from streamcl.events import Batch, Kind
from streamcl.protocols import Learner, ProbabilisticLearner

LESSONS = 128
"""Forgotten samples that are learned again, at most, for the relearn time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model says: logits [N, C] of all samples asked about, and how fast it learns them again."""

    logits: Tensor
    regained: Floats


class Questions:
    """Everything that a model is asked: samples of each kind, in the columns of all classes."""

    def __init__(self, stream: SortedStream, classes: Sequence[str], kind: Kind, seed: int) -> None:
        labels = [*stream.kept.values(), *stream.gone.values()]
        self.columns = {name: i for i, name in enumerate(dict.fromkeys([*classes, *labels]))}
        self.gone = next(iter(stream.gone.values())) if kind == "class" else None
        known = set(stream.kept.values()) - {self.gone}
        test = [sample for sample in stream.held if sample.label in known]
        if not test:
            raise ForgettingError("there are no held-out samples to audit with")
        self._parts = (stream.forgotten, stream.retained, test)
        self._samples = [sample for part in self._parts for sample in part]
        unseen = [sample for sample in stream.held if sample.label == self.gone]
        self._check = stream.forgotten if self.gone is None else unseen
        order = np.random.default_rng(seed).permutation(len(stream.forgotten))
        self._lessons = [stream.forgotten[i] for i in order[:LESSONS]]
        self._after = max([*stream.kept, *stream.gone]) + 1

    @property
    def relearned(self) -> bool:
        """Whether there is anything on which learning again shows."""
        return bool(self._check)

    @property
    def test(self) -> int:
        """How many held-out samples are asked about."""
        return len(self._parts[2])

    def ask(self, learner: Learner) -> Answer:
        """What the learner says; it has learned the forgotten samples again afterwards."""
        return Answer(self._logits(learner), self._relearn(learner))

    def probes(self) -> Probes:
        """The samples as places in `Answer.logits`."""
        starts = np.cumsum([0, *map(len, self._parts)])
        forget, retain, test = (
            Examples(
                torch.arange(int(start), int(start) + len(part))[:, None],
                torch.tensor([self.columns[str(sample.label)] for sample in part]),
            )
            for start, part in zip(starts, self._parts, strict=False)
        )
        gone = None if self.gone is None else self.columns[self.gone]
        return Probes(forget, retain, test, gone, sharpness=1.0)

    def _logits(self, learner: Learner) -> Tensor:
        """[N, C] on the CPU, minus infinity for classes that the learner does not know."""
        assert isinstance(learner, ProbabilisticLearner)
        found = torch.cat([learner.logits(each).double().cpu() for each in portions(self._samples)])
        logits = torch.full((len(found), len(self.columns)), -torch.inf, dtype=torch.float64)
        logits[:, [self.columns[name] for name in learner.classes]] = found
        return logits

    def _relearn(self, learner: Learner) -> Floats:
        """Accuracy on what is checked after 1, 2, 4, ... of the lessons, and after the last."""
        accuracies, learned = [], 0
        while self._check and learned < len(self._lessons):
            until = min(max(1, 2 * learned), len(self._lessons))
            learner.learn(Batch(self._after + learned, tuple(self._lessons[learned:until])))
            learned = until
            guesses = [guess for each in portions(self._check) for guess in learner.predict(each)]
            pairs = zip(guesses, self._check, strict=True)
            accuracies.append(float(np.mean([guess.label == sample.label for guess, sample in pairs])))
        return np.array(accuracies)
