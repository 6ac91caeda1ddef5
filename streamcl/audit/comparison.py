"""All measures that need nothing but models' answers: models of any kind can be compared with references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from streamcl.audit import accuracy, neighbour, rmia, tug_of_war
from streamcl.audit import divergence as klom
from streamcl.audit import membership as attacks
from streamcl.audit.answers import Answers, Group, Groups
from streamcl.audit.data import Flags, Floats, Ints
from streamcl.audit.significance import Finding, Side, beside, relabelled

Measure: TypeAlias = Callable[[Group], Floats]
Statistic: TypeAlias = Callable[[Floats, Flags], Floats]


@dataclass(frozen=True, slots=True)
class Single:
    """A measure that one model alone has; the side on which it is bad; the smallest step it can take."""

    name: str
    measure: Measure
    side: Side = "both"
    step: float = 0.0
    paper: str = ""

    def beside(self, group: Group, groups: Groups) -> Finding:
        """The group's mean beside the references; one model alone is beside the retrained one."""
        alone = len(group) == 1
        return beside(
            self.name,
            *(self.measure(each) for each in (group, groups.references, groups.unforgotten)),
            side=self.side,
            step=self.step,
            centre=float(self.measure(groups.retrained)[0]) if alone else None,
            paper=self.paper,
        )


def findings(groups: Groups, group: Group, deals: int) -> list[Finding]:
    """Every measure of one of the groups; those of distributions where it has more than one model.

    deals: in how many random ways the models are dealt to two groups; no p is below 1 / (deals + 1).
    """
    single = [each.beside(group, groups) for each in singles(groups)]
    if len(group) < 2:
        return single
    return [*single, *of_distributions(groups, group, deals)]


def singles(groups: Groups) -> list[Single]:
    """The measures that one model alone has."""
    references, unforgotten = groups.references, groups.unforgotten
    forgotten, held = (1 / part.margin.shape[1] for part in (references.forget, references.test))
    kept = 1 / max(1, int(references.member.sum(axis=1).min()))
    found = [
        Single("forget accuracy", accuracy.forget_accuracy, step=forgotten),
        Single("retain accuracy", accuracy.retain_accuracy, step=kept),
        Single("test accuracy", accuracy.test_accuracy, step=held),
        Single("forget loss", accuracy.forget_loss),
        Single(
            *("Tug-of-War", lambda group: tug_of_war.tug_of_war(group, references)),
            side="low",
            step=max(forgotten, kept, held),
            paper=tug_of_war.PAPER,
        ),
        Single(
            *("LiRA", lambda group: attacks.lira(group, references, unforgotten).mean(axis=1)),
            step=forgotten,
            paper=attacks.LIRA,
        ),
    ]
    if groups.gone is None:
        return [*found, Single("RMIA", lambda group: rmia.rmia(group, references), paper=rmia.PAPER)]
    column = neighbour.nearest_class(references)
    if column is None:
        return found
    return [
        *found,
        Single(
            *("neighbour class", lambda group: neighbour.told_from_neighbour(group, column)),
            paper=neighbour.PAPER,
        ),
    ]


def failing(groups: Groups, group: Group, rate: float) -> float:
    """The share of the group's models that fail, each alone; a reference is judged beside the others."""
    failed = np.zeros(len(group), dtype=bool)
    measures = singles(groups)
    for each in measures:
        known, values = each.measure(groups.references), each.measure(group)
        for i, value in enumerate(values):
            others = np.delete(known, i) if group is groups.references else known
            finding = beside(each.name, np.array([value]), others, side=each.side, step=each.step)
            failed[i] |= finding.p < rate / len(measures)
    return float(failed.mean())


def by_memorisation(groups: Groups) -> tuple[Finding, ...]:
    """LiRA on the quarters of the forgotten samples that learning moves least and most.

    The first is a negative control: where learning leaves no trace an attack has nothing to find.
    """
    references, unforgotten = groups.references, groups.unforgotten
    order = np.argsort(attacks.memorisation(references, unforgotten))
    quarter = max(1, len(order) // 4)
    parts = {"LiRA, least memorised": order[:quarter], "LiRA, most memorised": order[-quarter:]}
    return tuple(
        Single(name, _votes_on(rows, references, unforgotten), step=1 / quarter, paper=attacks.LIRA).beside(
            groups.audited, groups
        )
        for name, rows in parts.items()
    )


def _votes_on(rows: Ints, references: Group, unforgotten: Group) -> Measure:
    return lambda group: attacks.lira(group, references, unforgotten)[:, rows].mean(axis=1)


def of_distributions(groups: Groups, group: Group, deals: int) -> list[Finding]:
    """Measures of many erased models, the group's, against many retrained ones."""
    known = groups.references
    statistics: list[tuple[str, Statistic, str, str]] = [
        ("U-LiRA", attacks.u_lira, "forget", attacks.U_LIRA),
        *((f"KLoM, {name}", klom.klom, name, klom.PAPER) for name in ("forget", "retain", "test")),
    ]
    return [
        relabelled(name, *_dealt(statistic, getattr(group, part), getattr(known, part), deals), paper=paper)
        for name, statistic, part, paper in statistics
    ]


def _dealt(statistic: Statistic, erased: Answers, retrained: Answers, deals: int) -> tuple[float, Floats]:
    """The statistic of two groups, and its values when their models are dealt to the groups at random."""
    margins = np.concatenate([erased.margin, retrained.margin])
    true = np.arange(len(margins)) < len(erased.margin)
    rng = np.random.default_rng(0)
    values = statistic(margins, np.array([true, *(rng.permutation(true) for _ in range(deals))]))
    return float(values[0]), values[1:]
