"""Measures which weight of the adapted branch is best, beside the one that the heads' sums ask for.

    python benchmarks/blend.py RUN... [--images 400]

Each RUN is the directory of a finished run of `ridge_lora` whose source holds images out. These are predicted
with 0, 1/2, 1, 3/2, 2 and 3 times the weight that the learner gives its adapted branch, and with the weight
that follows from the sums alone: where the branches explain shares R of the targets of samples left out
(generalised cross-validation) and their errors correlate as RHO says, the sum's squared error is least at
(v - c) / (v + w - 2 c), with v = 1 - R of the frozen branch, w of the adapted one, and c = RHO sqrt(v w).
Printed are accuracies in per cent, that weight, and the errors' correlation as it is on these images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from machine import machine

from streamcl.factory.source import build_source
from streamcl.heads.closed_form_head import ClosedFormHead
from streamcl.heads.cross_validation import explained_shares
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.blended_learner import BlendedLearner
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.nn.device import Compute
from streamcl.runs.learner import load_learner

RHO = 0.85
"""As it was on the first two runs."""
FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    print(json.dumps(machine(Compute(torch.device("cpu"), "32-true"))))
    columns = ("run", "classes", *(f"{each:g} times" for each in FACTORS), "by the sums", "weight", "rho")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in options.runs:
        print(f"| {' | '.join(map(str, (run.name, *figures(run, options.images))))} |", flush=True)


def figures(run: Path, limit: int) -> list[str]:
    """Return the columns of a run, but for its name."""
    learner, config = load_learner(run)
    assert isinstance(learner, BlendedLearner)
    branch = learner.adapted
    assert branch is not None
    every = [sample for part in build_source(config).info.holdout for sample in part.samples]
    known = [each for each in every[:: max(1, len(every) // limit)] if each.label in learner.classes]
    both = []
    for start in range(0, len(known), 64):
        reading = learner.read(known[start : start + 64])
        adapted = learner._adapted_of(reading)
        pair = learner.exact.head.scores_refit(reading.features), branch.head.scores_refit(adapted)
        both.append(torch.stack(pair))
    frozen, adapted = torch.cat(both, dim=1)  # [N, C] each
    adapted = torch.where(adapted.isfinite(), adapted, frozen)
    targets = torch.tensor([learner.classes.index(str(each.label)) for each in known])
    shares = branch.shares

    def accuracy(weight: torch.Tensor | float) -> str:
        right = (frozen + weight * (adapted - frozen)).argmax(1) == targets
        return f"{100 * float(right.double().mean()):.1f}"

    one_hot = torch.nn.functional.one_hot(targets, len(learner.classes))
    one, other = ((scores - one_hot).flatten() for scores in (frozen, adapted))
    rho = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    weight = weight_of_sums(learner.exact.head, branch.head)
    scaled = [accuracy((factor * shares).clamp(max=1)) for factor in FACTORS]
    return [str(len(learner.classes)), *scaled, accuracy(weight), f"{weight:.2f}", f"{rho:.2f}"]


def weight_of_sums(frozen: ClosedFormHead[Statistics], adapted: RidgeHead) -> float:
    """Return the weight of the adapted branch with the least squared error, from 0 to 1, by the sums."""
    ridge = RidgeOptions().variance_ridge or 1.0
    v, w = (1 - float(explained_shares(head.statistics, [ridge])[0]) for head in (frozen, adapted))
    c = RHO * np.sqrt(v * w)
    return float(np.clip((v - c) / (v + w - 2 * c), 0, 1))


if __name__ == "__main__":
    main()
