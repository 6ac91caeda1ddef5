"""The interclass-confusion test: labels of two classes are swapped, learned and erased; does confusion stay?

Goel et al., "Towards adversarial evaluations for inexact machine unlearning" (arXiv 2201.06640). On features
with closed-form heads, and on samples of the stream with any learner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.closed_form_models import ClosedFormModels, LinearModel
from streamcl.audit.data import Examples, Floats, Ints, ModelStatistics, Scorer
from streamcl.audit.significance import MeasureResult, compare_with_references
from streamcl.audit.stream_split import predicted_labels
from streamcl.events import Sample
from streamcl.protocols import Learner

MAX_SWAPPED = 50
"""Samples of a class whose labels are swapped: enough to confuse the pair, few beside what is retained."""


def confusion_result(after: Floats, never: Floats, before: Floats, *, step: float) -> MeasureResult:
    """Return the measure of the confusions of models that erased, never learned or learned swapped labels.

    Args:
        after, never, before: [M], [K] and [U], a share in [0, 1] for each model of the three kinds.
        step: the smallest difference that can be seen, one sample's share.
    """
    name, paper = "interclass confusion", "arXiv 2201.06640"
    return compare_with_references(name, after, never, before, step=step, paper=paper)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureLabelSwap:
    """Retained samples of two classes with swapped labels, and held-out samples of both classes.

    Attributes:
        pair: the two class columns.
        rows: int64 [M], of the retained samples with swapped labels.
        wrong: these samples with those labels.
        check: held-out samples of both classes, with their own labels.
    """

    pair: tuple[int, int]
    rows: Tensor
    wrong: Examples
    check: Examples

    def confusion(self, model: LinearModel) -> float:
        """Return the share of both classes' held-out samples that are predicted as the other class."""
        a, b = self.pair
        named = model(self.check.features).argmax(dim=1)
        other = torch.where(self.check.labels == a, b, a)
        return float((named == other).double().mean())

    def confusion_after_erasure(
        self, solver: ClosedFormModels, models: Iterable[ModelStatistics]
    ) -> tuple[Floats, Floats]:
        """Return confusion [M] after the swapped samples are learned, and after they are erased again.

        models: statistics with the swapped samples neither by their right nor by their wrong labels.
        """
        both = [solver.learn_then_unlearn(known, self.wrong) for known in models]
        before, after = zip(*both, strict=True)
        return np.array([*map(self.confusion, before)]), np.array([*map(self.confusion, after)])


def swap_features(model: Scorer, retain: Examples, test: Examples, seed: int) -> FeatureLabelSwap | None:
    """Return a swap of the two classes that the model confuses most on `test`; None without confusion."""
    named = model(test.features).argmax(dim=1)
    columns = int(torch.maximum(named.max(), test.labels.max())) + 1
    counts = torch.zeros(columns, columns, dtype=torch.int64)
    counts.index_put_((test.labels, named), torch.ones_like(named), accumulate=True)
    both = (counts + counts.T).triu(1)
    if int(both.max()) == 0:
        return None
    a, b = divmod(int(both.argmax()), columns)
    rng = np.random.default_rng(seed)
    found = [torch.nonzero(retain.labels == column)[:, 0].numpy() for column in (a, b)]
    rows = torch.from_numpy(np.concatenate([_drawn(each, rng) for each in found]))
    right = retain.at(rows)
    wrong = Examples(right.features, torch.where(right.labels == a, b, a))
    return FeatureLabelSwap((a, b), rows, wrong, test.at((test.labels == a) | (test.labels == b)))


@dataclass(frozen=True, slots=True)
class LabelSwap:
    """Two classes, the swapped labels by offset of retained samples, and held-out samples of both."""

    pair: tuple[str, str]
    wrong: Mapping[int, str]
    check: Sequence[Sample]

    def confusion(self, learner: Learner) -> float:
        """Return the share of both classes' held-out samples that are predicted as the other class."""
        one, two = self.pair
        other = {one: two, two: one}
        pairs = zip(predicted_labels(learner, self.check), self.check, strict=True)
        return float(np.mean([label == other[str(sample.label)] for label, sample in pairs]))


def swap_labels(
    learner: Learner, held_out: Sequence[Sample], retained: Mapping[int, str], seed: int
) -> LabelSwap | None:
    """Return a swap of the two classes that the learner confuses most on held-out samples.

    Where it confuses none, of the two classes with most held-out samples: swapping will confuse them. None
    where there are not two classes. retained: labels by offset.
    """
    names = set(retained.values())
    confused = Counter(
        frozenset((str(sample.label), str(label)))
        for sample, label in zip(held_out, predicted_labels(learner, held_out), strict=True)
        if sample.label != label and {sample.label, label} <= names
    )
    counts = Counter(str(sample.label) for sample in held_out if sample.label in names)
    if len(counts) < 2:
        return None
    most = max(confused.values(), default=0)
    pairs = [sorted(pair) for pair, count in confused.items() if count == most]
    one, two = min(pairs) if pairs else sorted(sorted(counts, key=lambda name: (-counts[name], name))[:2])
    rng = np.random.default_rng(seed)
    wrong: dict[int, str] = {}
    for name, other in ((one, two), (two, one)):
        offsets = np.array(sorted(offset for offset, label in retained.items() if label == name))
        wrong |= dict.fromkeys(_drawn(offsets, rng).tolist(), other)
    return LabelSwap((one, two), wrong, [sample for sample in held_out if sample.label in {one, two}])


def _drawn(rows: Ints, rng: np.random.Generator) -> Ints:
    """At most MAX_SWAPPED of a class's samples, and at most half of them."""
    return rng.choice(rows, min(MAX_SWAPPED, len(rows) // 2), replace=False)
