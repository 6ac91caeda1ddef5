"""Audits the erasure of a closed-form head beside models solved from statistics without the data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from streamcl.audit.closed_form_models import ClosedFormModels
from streamcl.audit.comparison import compare_group, make_report
from streamcl.audit.data import (
    MIN_MODELS,
    AuditConfig,
    AuditData,
    Flags,
    ModelGroup,
    ModelGroups,
    ModelStatistics,
    ProbeSet,
    Scorer,
    draw_left_out,
)
from streamcl.audit.label_swap import confusion_result, swap_features
from streamcl.audit.relearning import REGAINED_SHARE, accuracy_after, relearn_result, relearn_times
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import MeasureResult
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.statistics import PerHead


def audit(
    data: AuditData,
    audited: ModelStatistics | Scorer,
    heads: Sequence[RidgeHead],
    config: AuditConfig | None = None,
) -> AuditReport:
    """Judge an erasure from a closed form beside models retrained without the data.

    From statistics as many models are made as there are references, each without a share of the retained
    samples, so that both groups are drawn alike; scores alone are one model.

    Args:
        data: features of what was retained, erased and held out.
        audited: statistics of the model under audit, or its scores [N, C] of features [N, D].
        heads: of the learner, by whose options models are solved (see `ClosedFormModels`).
        config: settings of the audit.

    Raises:
        ForgettingError: the audited statistics cannot be solved.
    """
    began = time.perf_counter()
    config = config or AuditConfig()
    stale = None if data.base is None else data.base.heads[-1].counts
    models = ReferenceModels(data, config, ClosedFormModels(heads, data.columns, stale))
    groups = models.groups(audited)
    known = audited if isinstance(audited, PerHead) else None
    return make_report(
        groups,
        compare_group(groups, groups.audited, config.permutations),
        [] if known is None else [*_confusion(models, known), *_relearn_time(models, known)],
        config,
        began=began,
        counts=data.counts,
        models={name: len(getattr(groups, name)) for name in ("audited", "references", "unforgotten")},
        statistics_error=None if known is None else models.retained.relative_error(known),
    )


class ReferenceModels:
    """Makes the models of an audit and evaluates them, on at most `config.max_samples` samples of each kind.

    Attributes:
        retained: statistics of all retained samples.
        unforgotten: those and the erased samples'.
    """

    def __init__(self, data: AuditData, config: AuditConfig, solver: ClosedFormModels) -> None:
        self.data, self.config, self.solver = data, config, solver
        self.retained = solver.measure(data.retain)
        if data.base is not None:
            self.retained += data.base
        self.unforgotten = self.retained + solver.measure(data.forget)
        self._rng = np.random.default_rng(config.seed)
        kinds = (data.forget, data.retain, data.test)
        forget, retain, test = (each.sample(config.max_samples, config.seed) for each in kinds)
        self._probes = ProbeSet(forget[0], retain[0], test[0], data.erased_class, config.logit_scale)
        self._rows = retain[1]  # of the retained samples in the probe set

    def groups(self, audited: ModelStatistics | Scorer) -> ModelGroups:
        """Make and evaluate as many references as configured, and half as many that never forgot."""
        count, erased = self.config.references, self.data.erased_class
        references = self._evaluate(self.retained, count)
        unforgotten = self._evaluate(self.unforgotten, max(MIN_MODELS, count // 2), masked=erased)
        everything: Flags = np.ones((1, len(self._rows)), dtype=bool)
        retrained = self._probes.evaluate([self.solver.solve(self.retained)], everything)
        if isinstance(audited, PerHead):
            group = self._evaluate(audited, count)
        else:
            group = self._probes.evaluate([audited], everything)
        return ModelGroups(group, references, unforgotten, retrained, erased)

    def few_models(self, known: ModelStatistics, rows: Tensor | None = None) -> Iterator[ModelStatistics]:
        """Yield the statistics of a few models, each without a random share of the retained samples.

        Args:
            known: the statistics of all samples.
            rows: int64 [n], retained samples that every model is without; None for none.
        """
        left_out = self._draw(MIN_MODELS)
        if rows is not None:
            left_out[:, rows] = True
        return self._without(known, left_out)

    def _evaluate(self, known: ModelStatistics, count: int, *, masked: int | None = None) -> ModelGroup:
        """Outputs of models without a share of the retained samples each; one class may be masked."""
        left_out = self._draw(count)
        models = (self.solver.solve(each).without(masked) for each in self._without(known, left_out))
        return self._probes.evaluate(models, ~left_out[:, self._rows].numpy())

    def _without(self, known: ModelStatistics, left_out: Tensor) -> Iterator[ModelStatistics]:
        """The statistics without the retained samples of each row of left_out, bool [M, N]."""
        return (known - self.solver.measure(self.data.retain.at(row)) for row in left_out)

    def _draw(self, count: int) -> Tensor:
        return draw_left_out(count, len(self.data.retain), self.config.left_out, self._rng)


def _confusion(models: ReferenceModels, known: ModelStatistics) -> list[MeasureResult]:
    data, solver = models.data, models.solver
    swap = swap_features(solver.solve(models.retained), data.retain, data.test, models.config.seed)
    if swap is None:
        return []
    before, after = swap.confusion_after_erasure(solver, models.few_models(known, swap.rows))
    never = [swap.confusion(solver.solve(each)) for each in models.few_models(models.retained, swap.rows)]
    step = 1 / len(swap.check)
    return [confusion_result(after, np.array(never), before, step=step)]


def _relearn_time(models: ReferenceModels, known: ModelStatistics) -> list[MeasureResult]:
    data, solver = models.data, models.solver
    check = data.forget if data.erased_test is None else data.erased_test
    if not len(check):
        return []
    examples = data.forget.shuffled(models.config.seed)
    target = REGAINED_SHARE * accuracy_after(solver, models.retained, examples, check)
    times = (
        relearn_times(solver, models.few_models(each), examples, check, target)
        for each in (known, models.retained, models.unforgotten)
    )
    return [relearn_result(*times)]
