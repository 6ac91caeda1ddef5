"""Audits the erasure of a closed-form head beside models solved from statistics without the data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.closed_form_models import (
    ModelFactory,
    add_statistics,
    draw_left_out,
    model_factory,
    relative_error,
    statistics_without,
)
from streamcl.audit.comparison import compare_group, make_report
from streamcl.audit.data import (
    MIN_MODELS,
    AuditConfig,
    AuditData,
    AuditedModel,
    Flags,
    ModelGroup,
    ModelGroups,
    ModelStatistics,
    ProbeSet,
    Scorer,
)
from streamcl.audit.label_swap import CONFUSION_PAPER, swap_features
from streamcl.audit.relearning import REGAINED, RELEARN_PAPER, accuracy_after, relearn_times
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import MeasureResult, compare_with_references


def audit(
    data: AuditData,
    audited: AuditedModel,
    *,
    trace_ridge: float,
    variance_ridge: float | None = None,
    gcv_margin: float | None = None,
    widths: Sequence[int] = (),
    config: AuditConfig | None = None,
) -> AuditReport:
    """Judge an erasure from a closed form beside models retrained without the data.

    Args:
        data: features of what was retained, erased and held out.
        audited: the model under audit.
        trace_ridge, variance_ridge, gcv_margin: the head's; of two heads, gcv_margin is the frozen one's.
        widths: features of a frozen and of an adapted head, side by side in the data, where the learner
            blends two.
        config: settings of the audit.

    Raises:
        ForgettingError: the audited statistics cannot be solved.
    """
    began = time.perf_counter()
    config = config or AuditConfig()
    factory = model_factory(
        data, widths, trace_ridge=trace_ridge, variance_ridge=variance_ridge, gcv_margin=gcv_margin
    )
    models = ReferenceModels(data, config, factory)
    groups = models.groups(audited)
    known = audited.statistics
    return make_report(
        groups,
        compare_group(groups, groups.audited, config.permutations),
        [] if known is None else [*_confusion(models, known), *_relearn_time(models, known)],
        config,
        began=began,
        counts=data.counts,
        models={name: len(getattr(groups, name)) for name in ("audited", "references", "unforgotten")},
        statistics_error=None if known is None else relative_error(known, models.retained),
    )


class ReferenceModels:
    """Makes the models of an audit and evaluates them, on at most `config.max_samples` samples of each kind.

    Attributes:
        retained: statistics of all retained samples.
        unforgotten: those and the erased samples'.
    """

    def __init__(self, data: AuditData, config: AuditConfig, factory: ModelFactory) -> None:
        self.data, self.config, self.factory = data, config, factory
        self.retained = factory.measure(data.retain)
        if data.base is not None:
            self.retained = add_statistics(self.retained, data.base)
        self.unforgotten = add_statistics(self.retained, factory.measure(data.forget))
        self._rng = np.random.default_rng(config.seed)
        kinds = (data.forget, data.retain, data.test)
        forget, retain, test = (each.sample(config.max_samples, config.seed) for each in kinds)
        self._probes = ProbeSet(forget[0], retain[0], test[0], data.erased_class, config.logit_scale)
        self._rows = retain[1]  # of the retained samples in the probe set

    def groups(self, audited: AuditedModel) -> ModelGroups:
        """Make and evaluate as many references as configured, and half as many that never forgot."""
        count = self.config.references
        references = self._evaluate(self.retained, count)
        unforgotten = self._evaluate(self.unforgotten, max(MIN_MODELS, count // 2), mask=True)
        everything: Flags = np.ones((1, len(self._rows)), dtype=bool)
        retrained = self._probes.evaluate([self.factory.solve(self.retained)], everything)
        if audited.statistics is not None:
            group = self._evaluate(audited.statistics, count)
        else:
            assert audited.scorer is not None
            group = self._probes.evaluate([audited.scorer], everything)
        return ModelGroups(group, references, unforgotten, retrained, self.data.erased_class)

    def few_without(self, known: ModelStatistics, rows: Tensor) -> Iterator[ModelStatistics]:
        """Yield statistics of a few models, each without these retained rows and a share of the others."""
        left_out = self._draw(MIN_MODELS)
        left_out[:, rows] = True
        return statistics_without(self.factory, known, self.data.retain, left_out)

    def _evaluate(self, known: ModelStatistics, count: int, *, mask: bool = False) -> ModelGroup:
        """Outputs of models without a share of the retained samples each.

        mask: unable to predict the erased class, whose samples the statistics may still hold.
        """
        left_out = self._draw(count)
        member: Flags = ~left_out[:, self._rows].numpy()
        return self._probes.evaluate(self._models(known, left_out, mask=mask), member)

    def _models(self, known: ModelStatistics, left_out: Tensor, *, mask: bool) -> Iterator[Scorer]:
        for each in statistics_without(self.factory, known, self.data.retain, left_out):
            yield self.factory.solve(each).without(self.data.erased_class if mask else None)

    def _draw(self, count: int) -> Tensor:
        return draw_left_out(count, len(self.data.retain), self.config.left_out, self._rng)


def _confusion(models: ReferenceModels, known: ModelStatistics) -> list[MeasureResult]:
    data, factory = models.data, models.factory
    swap = swap_features(factory.solve(models.retained), data.retain, data.test, models.config.seed)
    if swap is None:
        return []
    before, after = swap.confusion_after_erasure(factory, models.few_without(known, swap.rows))
    references = np.array(
        [swap.confusion(factory.solve(each)) for each in models.few_without(models.retained, swap.rows)]
    )
    return [
        compare_with_references(
            *("interclass confusion", after, references, before),
            step=1 / len(swap.check),
            paper=CONFUSION_PAPER,
        )
    ]


def _relearn_time(models: ReferenceModels, known: ModelStatistics) -> list[MeasureResult]:
    data, factory = models.data, models.factory
    check = data.forget if data.erased_test is None else data.erased_test
    if not len(check):
        return []
    lessons = data.forget.shuffled(models.config.seed)
    target = REGAINED * accuracy_after(factory, models.retained, lessons, check)
    none = torch.zeros(0, dtype=torch.int64)
    times = (
        relearn_times(factory, models.few_without(each, none), lessons, check, target)
        for each in (known, models.retained, models.unforgotten)
    )
    return [compare_with_references("relearn time, log2 samples", *times, step=1.0, paper=RELEARN_PAPER)]
