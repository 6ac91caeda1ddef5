"""Accuracy of predictions within a budget of work (`streamcl predict --budget`), on real images.

    python benchmarks/early_exit.py [--packs office_caltech10,grocery81,digits] [--cache DIR]

The default ridge head learns at most 2,000 images of a pack; thresholds come from one half of its test
images, as from held-out ones, and the other half is predicted: its accuracy, at the share of the backbone's
blocks that it took.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from stability import Split, read
from torch import Tensor

from streamcl.learners.exit_plan import plan_exits

BLOCKS = (4, 6, 8, 10)
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def exit_scores(split: Split) -> list[Tensor]:
    """Scores [N, C] of the test images at each exit."""
    head, width = split.head(), split.x.shape[1]
    parts = range(1, len(BLOCKS) + 1)
    return [head.leading_scores(split.x_test[:, : width * part // len(BLOCKS)]) for part in parts]


def margins_of(scores: Sequence[Tensor]) -> Tensor:
    """Margins of the two best scores at each exit but the last, [N, K - 1]."""
    best = [each.topk(2, dim=1).values for each in scores[:-1]]
    return torch.stack([each[:, 0] - each[:, 1] for each in best], dim=1)


def follow(margins: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The exit that each image takes, [N]."""
    reached = torch.cat(
        [margins >= torch.tensor(thresholds), torch.ones(len(margins), 1, dtype=torch.bool)], dim=1
    )
    return reached.int().argmax(dim=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81,digits")
    parser.add_argument("--cache", type=Path, help="folder in which features are kept")
    arguments = parser.parse_args()
    ends = [0, *(block + 1 for block in BLOCKS)]
    costs = [(stop - start) / ends[-1] for start, stop in pairwise(ends)]
    print(
        "| | "
        + " | ".join(f"{budget:.0%}" for budget in BUDGETS)
        + " | all to exit "
        + ", ".join(map(str, BLOCKS))
    )
    print("|---|" + "---:|" * (len(BUDGETS) + 1))
    for name, split in read(arguments.packs.split(","), arguments.cache).items():
        scores = exit_scores(split)
        margins, named = margins_of(scores), torch.stack([each.argmax(dim=1) for each in scores], dim=1)
        right, spent = named == split.y_test[:, None], torch.tensor(list(accumulate(costs)))
        cells = []
        for budget in BUDGETS:
            plan = plan_exits(margins[::2], costs, budget)
            if plan is None:
                cells.append("")
                continue
            taken = follow(margins[1::2], plan.thresholds)
            accuracy = right[1::2].gather(1, taken[:, None]).double().mean()
            cells.append(f"{accuracy:.3f} at {spent[taken].mean():.2f}")
        alone = ", ".join(f"{each:.3f}" for each in right[1::2].double().mean(dim=0).tolist())
        print(f"| {name} | " + " | ".join(cells) + f" | {alone} |", flush=True)


if __name__ == "__main__":
    main()
