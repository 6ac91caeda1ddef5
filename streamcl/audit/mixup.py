"""The interclass-confusion test by further runs: two classes' labels are swapped, learned, and forgotten.

Goel et al., "Towards adversarial evaluations for inexact machine unlearning" (arXiv 2201.06640). What closed
forms do on sums (see streamcl.audit.label_swap) is done here on runs of the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamcl.audit.label_swap import MOST
from streamcl.audit.scope import portions
from streamcl.events import Sample
from streamcl.protocols import Learner


@dataclass(frozen=True, slots=True)
class Mixup:
    """Two classes; the offsets of retained samples whose labels are swapped, with the wrong label of each."""

    pair: tuple[str, str]
    wrong: Mapping[int, str]
    check: Sequence[Sample]

    def confusion(self, learner: Learner) -> float:
        """The share of both classes' held-out samples that is given the other one's name."""
        one, two = self.pair
        other = {one: two, two: one}
        guesses = [guess for each in portions(self.check) for guess in learner.predict(each)]
        pairs = zip(guesses, self.check, strict=True)
        return float(np.mean([guess.label == other[str(sample.label)] for guess, sample in pairs]))


def most_confused(
    learner: Learner, held: Sequence[Sample], kept: Mapping[int, str], seed: int
) -> Mixup | None:
    """The two classes of the held-out samples that the learner confuses most; None where there are not two.

    Where it confuses none, the two with most held-out samples: what is swapped will be confused.
    """
    guesses = [guess for each in portions(held) for guess in learner.predict(each)]
    names = set(kept.values())
    both = Counter(
        frozenset((str(sample.label), str(guess.label)))
        for sample, guess in zip(held, guesses, strict=True)
        if sample.label != guess.label and {sample.label, guess.label} <= names
    )
    counts = Counter(str(sample.label) for sample in held if sample.label in names)
    if len(counts) < 2:
        return None
    most = max(both.values(), default=0)
    pairs = [sorted(pair) for pair, count in both.items() if count == most]
    one, two = min(pairs) if pairs else sorted(sorted(counts, key=lambda name: (-counts[name], name))[:2])
    rng = np.random.default_rng(seed)
    wrong: dict[int, str] = {}
    for name, other in ((one, two), (two, one)):
        offsets = sorted(offset for offset, label in kept.items() if label == name)
        drawn = rng.choice(offsets, min(MOST, len(offsets) // 2), replace=False)
        wrong |= dict.fromkeys(drawn.tolist(), other)
    return Mixup((one, two), wrong, [sample for sample in held if sample.label in {one, two}])
