"""Audits any learner beside models that further runs of the same stream retrain without the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.comparison import compare_distributions, compare_group, make_report
from streamcl.audit.data import MIN_MODELS, AuditConfig, Examples, Floats, ModelGroup, ModelGroups, ProbeSet
from streamcl.audit.label_swap import LabelSwap, confusion_result
from streamcl.audit.relearning import REGAINED_SHARE, log2_samples_until, relearn_result
from streamcl.audit.report import AuditReport
from streamcl.audit.retraining import RetrainedModels, Retraining
from streamcl.audit.significance import MeasureResult
from streamcl.audit.stream_split import StreamSplit, in_chunks, predicted_labels
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, HoldoutPart
from streamcl.learners.holdout_calibration import HoldoutCalibrator
from streamcl.protocols import Learner, ProbabilisticLearner
from streamcl.requests.terms import Kind

MAX_RELEARNED = 128
"""Forgotten samples to relearn, which bounds the time that each model takes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearnerOutput:
    """Logits [N, C] of a learner on all probe samples, and accuracies [K] after relearning 1, 2, 4, ..."""

    logits: Tensor
    relearned: Floats


class LearnerProbes:
    """Evaluates learners on samples of each kind, in the columns of all classes.

    Raises:
        ForgettingError: there are no held-out samples of the retained classes.
    """

    def __init__(self, split: StreamSplit, classes: Sequence[str], kind: Kind, seed: int) -> None:
        labels = [*split.retained_labels.values(), *split.gone.values()]
        self._columns = {name: i for i, name in enumerate(dict.fromkeys([*classes, *labels]))}
        erased = next(iter(split.gone.values())) if kind == "class" else None
        known = set(split.retained_labels.values()) - {erased}
        test = [sample for sample in split.held_out if sample.label in known]
        if not test:
            raise ForgettingError("there are no held-out samples to audit with")
        self._parts = (split.forgotten, split.retained, test)
        self._samples = [sample for part in self._parts for sample in part]
        unseen = [sample for sample in split.held_out if sample.label == erased]
        self._check = split.forgotten if erased is None else unseen
        order = np.random.default_rng(seed).permutation(len(split.forgotten))
        self._relearned = [split.forgotten[i] for i in order[:MAX_RELEARNED]]
        self._after = max([*split.retained_labels, *split.gone]) + 1
        self.erased_class = None if erased is None else self._columns[erased]
        self.held_out = len(test)

    @property
    def can_relearn(self) -> bool:
        """Whether there are samples on which relearning can be measured."""
        return bool(self._check)

    def evaluate(self, learner: Learner) -> LearnerOutput:
        """Return the learner's output; afterwards the learner has learned the forgotten samples again."""
        return LearnerOutput(self._logits(learner), self._relearn(learner))

    def probe_set(self) -> ProbeSet:
        """Return the samples as rows of `LearnerOutput.logits`."""
        starts = np.cumsum([0, *map(len, self._parts)])
        forget, retain, test = (
            Examples(
                torch.arange(int(start), int(start) + len(part))[:, None],
                torch.tensor([self._columns[str(sample.label)] for sample in part]),
            )
            for start, part in zip(starts, self._parts, strict=False)
        )
        return ProbeSet(forget, retain, test, self.erased_class, logit_scale=1.0)

    def _logits(self, learner: Learner) -> Tensor:
        """[N, C] on the CPU, minus infinity for classes that the learner does not know."""
        assert isinstance(learner, ProbabilisticLearner)
        HoldoutCalibrator(
            learner, [HoldoutPart("test", self._parts[-1])]
        ).fit()  # retrained models hold none out
        found = torch.cat([learner.logits(each).double().cpu() for each in in_chunks(self._samples)])
        logits = torch.full((len(found), len(self._columns)), -torch.inf, dtype=torch.float64)
        logits[:, [self._columns[name] for name in learner.classes]] = found
        return logits

    def _relearn(self, learner: Learner) -> Floats:
        """Accuracy after 1, 2, 4, ... of the lessons, and after the last."""
        accuracies, learned = [], 0
        while self._check and learned < len(self._relearned):
            until = min(max(1, 2 * learned), len(self._relearned))
            learner.learn(Batch(self._after + learned, tuple(self._relearned[learned:until])))
            learned = until
            pairs = zip(predicted_labels(learner, self._check), self._check, strict=True)
            accuracies.append(float(np.mean([label == sample.label for label, sample in pairs])))
        return np.array(accuracies)


def audit_by_retraining(
    learner: Learner,
    split: StreamSplit,
    retraining: Retraining,
    request: ForgetRequest,
    *,
    swap: tuple[LabelSwap, ForgetRequest] | None,
    config: AuditConfig,
) -> AuditReport:
    """Judge an erasure from any learner beside models of runs that never saw the data.

    U-LiRA and KLoM are judged on models that learned the data and were made to forget it as the run was, at
    the same offset of the stream; every other measure on the run's own model. swap: for the
    interclass-confusion test, with the request that erases the swapped samples.
    """
    began = time.perf_counter()
    probes = LearnerProbes(split, learner.classes, request.kind, config.seed)
    limit = 1 + (3 if swap is None else 5) * config.reruns
    models = RetrainedModels(split, retraining, probes.evaluate, config, limit=limit)
    probe_set = probes.probe_set()

    def group(
        outputs: Sequence[LearnerOutput], left_out: Sequence[frozenset[int]], *, mask: bool = False
    ) -> ModelGroup:
        member = np.stack([split.members(each) for each in left_out])
        hidden = probes.erased_class if mask else None
        return probe_set.evaluate((_scorer(each.logits, hidden) for each in outputs), member)

    retrained = models.retrained()
    references = models.group("without the data", forgotten=False)
    unforgotten = models.group("with the data", forgotten=True)
    erased = models.group("made to forget it", forgotten=True, request=request)
    own = probes.evaluate(learner)
    groups = ModelGroups(
        group([own], [frozenset()]),
        group(*references),
        group(*unforgotten, mask=True),
        group([retrained], [frozenset()]),
        probes.erased_class,
    )
    by_outputs = compare_group(groups, groups.audited, config.permutations)
    if len(erased[0]) >= MIN_MODELS // 2:
        by_outputs += compare_distributions(groups, group(*erased), config.permutations)
    else:
        logger.warning(
            "only %d of %d reruns erased as this run did, so U-LiRA and KLoM are left out",
            len(erased[0]),
            config.reruns,
        )
    by_learning = []
    if probes.can_relearn:
        by_learning += [_relearn_time(own, references[0], unforgotten[0], retrained)]
    if swap is not None:
        by_learning += _confusion(models, *swap)
    return make_report(
        groups,
        by_outputs,
        by_learning,
        config,
        began=began,
        counts={"retain": len(split.retained_labels), "forget": len(split.gone), "test": probes.held_out},
        models={
            "audited": 1,
            "references": len(references[0]),
            "unforgotten": len(unforgotten[0]),
            "forgotten again": len(erased[0]),
        },
        reruns=models.runs,
    )


def _scorer(logits: Tensor, hidden: int | None) -> Callable[[Tensor], Tensor]:
    if hidden is not None:
        logits = logits.index_fill(1, torch.tensor([hidden]), -torch.inf)
    return lambda rows: logits[rows[:, 0]]


def _relearn_time(
    own: LearnerOutput,
    references: Sequence[LearnerOutput],
    unforgotten: Sequence[LearnerOutput],
    retrained: LearnerOutput,
) -> MeasureResult:
    target = REGAINED_SHARE * float(retrained.relearned[-1])
    times = (
        np.array([log2_samples_until(each.relearned, target) for each in outputs])
        for outputs in ([own], references, unforgotten)
    )
    return relearn_result(*times, centre=log2_samples_until(retrained.relearned, target))


def _confusion(
    models: RetrainedModels[LearnerOutput], swap: LabelSwap, request: ForgetRequest
) -> list[MeasureResult]:
    never, before, after = map(np.array, models.confusions(swap, request))
    if len(after) < 2:
        logger.warning("the method cannot forget single samples, so interclass confusion is left out")
        return []
    return [confusion_result(after, never, before, step=1 / len(swap.check))]
