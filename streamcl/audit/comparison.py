"""Compares groups of models by all measures that need only their outputs, and makes the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from streamcl.audit import measures
from streamcl.audit.data import AuditConfig, Floats, Ints, ModelGroup, ModelGroups
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import (
    MeasureResult,
    Side,
    compare_with_permutations,
    compare_with_references,
    with_outcomes,
)

Measure: TypeAlias = Callable[[ModelGroup], Floats]


@dataclass(frozen=True, slots=True)
class ScalarMeasure:
    """A measure of single models [M]; the side on which it is bad; the smallest step it can take."""

    name: str
    measure: Measure
    side: Side = "both"
    step: float = 0.0
    paper: str = ""

    def compare(self, group: ModelGroup, groups: ModelGroups) -> MeasureResult:
        """Judge the group's mean beside the references; a single model beside the retrained one."""
        alone = len(group) == 1
        return compare_with_references(
            self.name,
            *(self.measure(each) for each in (group, groups.references, groups.unforgotten)),
            side=self.side,
            step=self.step,
            centre=float(self.measure(groups.retrained)[0]) if alone else None,
            paper=self.paper,
        )


def compare_group(groups: ModelGroups, group: ModelGroup, permutations: int) -> list[MeasureResult]:
    """Return every measure of one of the groups; those of distributions where it has more than one model.

    Args:
        groups: of the audit.
        group: the one to judge.
        permutations: random assignments to two groups; no p-value is below 1 / (permutations + 1).
    """
    results = [each.compare(group, groups) for each in scalar_measures(groups)]
    return results if len(group) < 2 else [*results, *compare_distributions(groups, group, permutations)]


def scalar_measures(groups: ModelGroups) -> list[ScalarMeasure]:
    """Return the measures that a single model has."""
    references, unforgotten = groups.references, groups.unforgotten
    forgotten, held_out = (1 / part.margin.shape[1] for part in (references.forget, references.test))
    retained = 1 / max(1, int(references.member.sum(axis=1).min()))
    found = [
        ScalarMeasure("forget accuracy", measures.forget_accuracy, step=forgotten),
        ScalarMeasure("retain accuracy", measures.retain_accuracy, step=retained),
        ScalarMeasure("test accuracy", measures.test_accuracy, step=held_out),
        ScalarMeasure("forget loss", measures.forget_loss),
        ScalarMeasure(
            *("Tug-of-War", lambda group: measures.tug_of_war(group, references)),
            side="low",
            step=max(forgotten, retained, held_out),
            paper=measures.TUG_OF_WAR_PAPER,
        ),
        ScalarMeasure(
            *("LiRA", lambda group: measures.lira(group, references, unforgotten).mean(axis=1)),
            step=forgotten,
            paper=measures.LIRA_PAPER,
        ),
    ]
    if groups.erased_class is None:
        rmia = lambda group: measures.rmia(group, references)  # noqa: E731
        return [*found, ScalarMeasure("RMIA", rmia, paper=measures.RMIA_PAPER)]
    column = measures.neighbour_class(references)
    if column is None:
        return found
    separability = lambda group: measures.neighbour_separability(group, column)  # noqa: E731
    return [*found, ScalarMeasure("neighbour class", separability, paper=measures.NEIGHBOUR_PAPER)]


def failure_rate(groups: ModelGroups, group: ModelGroup, false_alarm_rate: float) -> float:
    """Return the share of the group's models that fail, each alone; a reference is judged by the others."""
    failed = np.zeros(len(group), dtype=bool)
    scalars = scalar_measures(groups)
    for each in scalars:
        known, values = each.measure(groups.references), each.measure(group)
        for i, value in enumerate(values):
            others = np.delete(known, i) if group is groups.references else known
            result = compare_with_references(
                each.name, np.array([value]), others, side=each.side, step=each.step
            )
            failed[i] |= result.p_value < false_alarm_rate / len(scalars)
    return float(failed.mean())


def compare_by_memorisation(groups: ModelGroups) -> tuple[MeasureResult, ...]:
    """Return LiRA on the quarters of the forgotten samples that learning moves least and most.

    The first is a negative control: where learning leaves no trace an attack has nothing to find.
    """
    order = np.argsort(measures.memorisation(groups.references, groups.unforgotten))
    quarter = max(1, len(order) // 4)

    def compare(name: str, rows: Ints) -> MeasureResult:
        pools = groups.references, groups.unforgotten
        lira = lambda group: measures.lira(group, *pools)[:, rows].mean(axis=1)  # noqa: E731
        measure = ScalarMeasure(name, lira, step=1 / quarter, paper=measures.LIRA_PAPER)
        return measure.compare(groups.audited, groups)

    least, most = order[:quarter], order[-quarter:]
    return compare("LiRA, least memorised", least), compare("LiRA, most memorised", most)


def compare_distributions(groups: ModelGroups, group: ModelGroup, permutations: int) -> list[MeasureResult]:
    """Return the measures of many erased models, the group's, against many retrained ones."""
    statistics = [("U-LiRA", "forget", measures.u_lira, measures.U_LIRA_PAPER)]
    for part in ("forget", "retain", "test"):
        statistics.append((f"KLoM, {part}", part, measures.klom, measures.KLOM_PAPER))
    results = []
    for name, part, statistic, paper in statistics:
        erased, retrained = getattr(group, part).margin, getattr(groups.references, part).margin
        true = np.arange(len(erased) + len(retrained)) < len(erased)
        rng = np.random.default_rng(0)
        assigned = np.array([true, *(rng.permutation(true) for _ in range(permutations))])
        values = statistic(np.concatenate([erased, retrained]), assigned)
        results.append(compare_with_permutations(name, float(values[0]), values[1:], paper=paper))
    return results


def make_report(
    groups: ModelGroups,
    by_outputs: Sequence[MeasureResult],
    by_learning: Sequence[MeasureResult],
    config: AuditConfig,
    *,
    began: float,
    **fields: Any,
) -> AuditReport:
    """Judge all results together, and report beside them those of models that never forgot.

    Args:
        groups, config: of the audit.
        by_outputs: measures of outputs.
        by_learning: measures for which models learned something first; they hold the value of models that
            never forgot already.
        began: `time.perf_counter()` at its start.
        fields: the report's other fields.
    """
    control = with_outcomes(
        compare_group(groups, groups.unforgotten, config.permutations), config.false_alarm_rate
    )
    shown = {each.measure: each.value for each in control}
    results = [replace(each, unforgotten=shown[each.measure]) for each in by_outputs]
    return AuditReport(
        kind="samples" if groups.erased_class is None else "class",
        left_out=config.left_out,
        false_alarm_rate=config.false_alarm_rate,
        references_failing=failure_rate(groups, groups.references, config.false_alarm_rate),
        unforgotten_failing=failure_rate(groups, groups.unforgotten, config.false_alarm_rate),
        unforgotten_detected=not all(each.passed for each in control),
        results=with_outcomes([*results, *by_learning], config.false_alarm_rate),
        by_memorisation=compare_by_memorisation(groups),
        seconds=time.perf_counter() - began,
        **fields,
    )
