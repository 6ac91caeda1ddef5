"""The interclass-confusion test: swapped labels are learned and forgotten; does the mix-up stay?

Goel et al., "Towards adversarial evaluations for inexact machine unlearning" (arXiv 2201.06640).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.closed_form_models import Form, Weights
from streamcl.audit.data import Examples, Floats, Scorer, Sums

PAPER = "arXiv 2201.06640"
MOST = 50  # samples a class whose labels are swapped


@dataclass(frozen=True, slots=True, eq=False)
class Swap:
    """Two classes, the rows of retained samples whose labels are swapped, and those samples so labelled."""

    pair: tuple[int, int]
    rows: Tensor
    wrong: Examples
    check: Examples


def most_confused(model: Scorer, retain: Examples, test: Examples, seed: int) -> Swap | None:
    """The two classes of the test samples that the model confuses most; None where it confuses none."""
    named = model(test.features).argmax(dim=1)
    columns = int(torch.maximum(named.max(), test.labels.max())) + 1
    counts = torch.zeros(columns, columns, dtype=torch.int64)
    counts.index_put_((test.labels, named), torch.ones_like(named), accumulate=True)
    both = (counts + counts.T).triu(1)
    if int(both.max()) == 0:
        return None
    a, b = divmod(int(both.argmax()), columns)
    rows = _drawn_from(retain.labels, (a, b), seed)
    right = retain.at(rows)
    wrong = Examples(right.features, torch.where(right.labels == a, b, a))
    return Swap((a, b), rows, wrong, test.at((test.labels == a) | (test.labels == b)))


def confusion(model: Weights, swap: Swap) -> float:
    """The share of both classes' held-out samples that is given the other one's name."""
    a, b = swap.pair
    named = model(swap.check.features).argmax(dim=1)
    other = torch.where(swap.check.labels == a, b, a)
    return float((named == other).double().mean())


def after_forgetting(form: Form, models: Iterable[Sums], swap: Swap) -> tuple[Floats, Floats]:
    """Confusion [M] before and after the swapped samples are forgotten again, by the head's own way.

    models: sums that hold the swapped samples neither with their right nor with their wrong labels.
    """
    before, after = [], []
    for sums in models:
        taught, erased = form.there_and_back(sums, swap.wrong)
        before.append(confusion(taught, swap))
        after.append(confusion(erased, swap))
    return np.array(before), np.array(after)


def _drawn_from(labels: Tensor, pair: tuple[int, int], seed: int) -> Tensor:
    """Rows of up to MOST samples, and at most half, of each of the two classes."""
    rng = np.random.default_rng(seed)
    found = [torch.nonzero(labels == column)[:, 0].numpy() for column in pair]
    return torch.from_numpy(
        np.concatenate([rng.choice(rows, min(MOST, len(rows) // 2), replace=False) for rows in found])
    )
