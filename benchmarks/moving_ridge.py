"""A ridge head on the features of `online_lora`'s adapters, which move with every batch: tried, and left out.

    python benchmarks/moving_ridge.py [--pack office_caltech10] [--size 56] [--seed 0] [--only linear,kept]

The images of a pack (STREAMCL_DEV_DATA names its folder) come domain after domain, in batches of 64. linear
is `online_lora` by itself, with the default options but a rate of 2e-3. In kept and restarted a ridge head
learns the features of each batch after its step, and predicts; the linear head is there for the gradients
alone. kept sums over the whole stream, so that most sums are of features that have moved since; restarted
begins anew at each consolidation. ridge is the ridge head on the last block without adapters, whose sums are
never out of date. Printed are accuracies on the test images in per cent, at the end and on average over the
stream.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamcl.events import Batch, Sample, StepResult
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.factory import LearnerContext
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.protocols import State
from streamcl.runs.open import open_run

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
RATE, DEPTH = 2e-3, 11
LEARNERS: dict[str, dict[str, Any]] = {
    "linear": {"name": "online_lora", "learning_rate": RATE},
    "kept": {"class": "moving_ridge:make", "args": {"restarts": False}},
    "restarted": {"class": "moving_ridge:make", "args": {"restarts": True}},
    "ridge": {"name": "ridge", "blocks": [DEPTH - 1]},
}


class MovingRidgeLearner(OnlineLoRALearner):
    """Online-LoRA that predicts by a ridge head on its final features, once something is learned.

    Args:
        context: backbone, device and seed.
        restarts: the head's sums begin anew at each consolidation.
    """

    def __init__(self, context: LearnerContext, *, restarts: bool) -> None:
        super().__init__(context.backbone, context.compute, learning_rate=RATE, seed=context.seed)
        self._restarts, self._ridge = restarts, self._fresh()

    def _fresh(self) -> RidgeHead:
        head = RidgeHead(self.backbone.width, variance_ridge=300.0, gcv_margin=2.0, refit_fraction=0.1)
        head.grow(len(self.classes))
        return head

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        features = self._features(samples)
        return self._ridge.scores_refit(features) if sum(self._ridge.counts) else self.head(features).detach()

    def learn(self, batch: Batch) -> StepResult:
        before = self.predict(batch.samples)
        result = super().learn(batch)
        self._ridge.grow(len(self.classes))
        self._ridge.update(self._features(batch.labelled), self.model.targets(batch.labelled))
        return StepResult(before, result.losses, result.learned)

    def consolidate(self) -> Mapping[str, Any]:
        figures = super().consolidate()
        if self._restarts:
            self._ridge = self._fresh()
        return figures

    def state_dict(self) -> State:
        return {**super().state_dict(), "ridge": self._ridge.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ridge = self._fresh()
        self._ridge.load_state_dict(state["ridge"])

    def _features(self, samples: Sequence[Sample]) -> Tensor:
        with torch.no_grad():
            return self.model.features(samples).float()


def make(context: LearnerContext, **options: Any) -> MovingRidgeLearner:
    """Return the learner; a configuration names this function."""
    return MovingRidgeLearner(context, **options)


def accuracies(name: str, folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return the accuracy on the test images at the end and its mean over the stream, from 0 to 1."""
    settings = {
        "run_dir": str(folder / name),
        "source": {"name": "npz", "args": {"path": str(DATA / f"{args.pack}.npz")}},
        "scenario": {"name": "domain_incremental", "seed": 0},
        "seed": args.seed,
        "batch": 64,
        "backbone": {
            **{"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus"},
            **{"depth": DEPTH, "image_size": args.size},
        },
        "learner": LEARNERS[name],
        "evaluate": {"every_samples": None},
        "report": {"samples": 0},
    }
    with open_run(settings) as run:
        for _ in run:
            pass
        figures = run.summary()["holdout"]
    return figures["A_Last"], figures["A_AUC"]


def main() -> None:
    """Print a line for each head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="office_caltech10")
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(LEARNERS))
    args = parser.parse_args()
    if not (DATA / f"{args.pack}.npz").exists():
        raise SystemExit(f"skipped: {DATA / args.pack}.npz is absent")
    print("| head | A_Last | A_AUC |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            last, mean = accuracies(name, Path(folder), args)
            print(f"| {name} | {100 * last:.1f} | {100 * mean:.1f} |", flush=True)


if __name__ == "__main__":
    main()
