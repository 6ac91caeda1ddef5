"""The models of one audit, each asked once: references, models that never forgot, and the audited ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.answers import Group, Groups, Probes
from streamcl.audit.closed_form_models import Form, combined, leave_outs, leaving_out
from streamcl.audit.data import Audited, Examples, Flags, Material, Scorer, Sums, drawn

FEW = 8
"""Models of a kind where each costs several solves, and under which a group is no distribution."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How thorough an audit is.

    references: models retrained without the data; reruns: the same where each is another run of the stream.
    left_out: the share of the retained samples that each of them goes without, another one each time; it
    makes their spread. rate: the chance of failing a retrained model, over all measures together.
    looked_at: samples of each kind on which models are asked.
    deals: random ways to deal models to two groups, by which group measures are judged; too few for `rate`
    cannot fail anything. sharpness: the learner's factor from scores to logits.
    """

    references: int = 64
    reruns: int = 8
    left_out: float = 0.1
    rate: float = 0.01
    looked_at: int = 1000
    deals: int = 1999
    sharpness: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (fewest := min(self.references, self.reruns)) < FEW:
            raise ValueError(f"{fewest} references are too few, expected at least {FEW}")


class Bench:
    """Makes the models of an audit and asks them, on at most `looked_at` samples of each kind."""

    def __init__(self, material: Material, plan: Plan, form: Form) -> None:
        self.material, self.plan, self.form = material, plan, form
        self.retained = self.form.measure(material.retain)
        if material.base is not None:
            self.retained = combined(self.retained, material.base)
        self.unforgotten_sums = combined(self.retained, self.form.measure(material.forget))
        self._rng = np.random.default_rng(plan.seed)
        kinds = (material.forget, material.retain, material.test)
        forget, retain, test = (drawn(each, plan.looked_at, plan.seed) for each in kinds)
        self._probes = Probes(forget[0], retain[0], test[0], material.gone, plan.sharpness)
        self._looked_at = retain[1]

    def groups(self, audited: Audited) -> Groups:
        """Make and ask them all: as many references as planned, half as many that never forgot."""
        count = self.plan.references
        references = self._ask(self.retained, count)
        unforgotten = self._ask(self.unforgotten_sums, max(FEW, count // 2), mask=True)
        everything: Flags = np.ones((1, len(self._looked_at)), dtype=bool)
        retrained = self._probes.ask([self.form.solve(self.retained)], everything)
        if audited.statistics is not None:
            group = self._ask(audited.statistics, count)
        else:
            assert audited.scorer is not None
            group = self._probes.ask([audited.scorer], everything)
        return Groups(group, references, unforgotten, retrained, self.material.gone)

    def few(self, sums: Sums, without: Tensor) -> Iterator[Sums]:
        """A few models' sums, each without these rows of the retained samples and a share of the others."""
        left_out = self._draw(FEW)
        left_out[:, without] = True
        return leaving_out(self.form, sums, self.material.retain, left_out)

    def _ask(self, sums: Sums, count: int, *, mask: bool = False) -> Group:
        """Models of these sums without a share of the retained samples each.

        mask: without the name of a forgotten class, which the sums may still hold.
        """
        left_out = self._draw(count)
        member: Flags = ~left_out[:, self._looked_at].numpy()
        return self._probes.ask(self._models(sums, left_out, mask=mask), member)

    def _models(self, sums: Sums, left_out: Tensor, *, mask: bool) -> Iterator[Scorer]:
        for each in leaving_out(self.form, sums, self.material.retain, left_out):
            yield self.form.solve(each).without(self.material.gone if mask else None)

    def _draw(self, count: int) -> Tensor:
        return leave_outs(count, len(self.material.retain), self.plan.left_out, self._rng)


def shuffled(examples: Examples, seed: int) -> Examples:
    """The same examples in a seeded order."""
    return examples.at(torch.from_numpy(np.random.default_rng(seed).permutation(len(examples))))
