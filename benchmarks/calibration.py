"""Measures how far confidences are from accuracy on images that are never learned, and before learning.

    python benchmarks/calibration.py [--packs office_caltech10,...] [--learners ridge,...] [--images 3000]
                                     [--image-size 70] [--scores FOLDER]

Each learner passes once over the training images of a development pack (STREAMCL_DEV_DATA names their folder;
ViT-S by pip, its first 11 blocks, batches of 64, ten disjoint parts or one domain after the other), as a run
does whose source has no held-out images: 5 % of the stream are held out. Its scores are written to a folder;
where they are there already, that takes no time. Printed is the expected calibration error (15 bins) in per
cent, one line a pack and learner:

own: on the pack's test images, fitted to what the run has held out of its stream, by a factor alone and by
    factor, slope and offset; in brackets how many images that are.
factor: on each half of the test images by a factor alone, fitted to at most 256 images of the other half, as
    where a source has held-out images of its own, which need not be like those of the stream. Mean of three
    draws of halves: even and odd places, and two by chance.
test: the same by factor, slope and offset; in brackets the least and the most of the three draws.
few: the same as test, fitted to at most 60 images: mean of the three draws.
chance: what perfect confidences of the size of those under test would come to on so few images; in brackets
    what they would exceed once in twenty times.
before learning: of all predictions of the stream, new classes included; by the factor alone, by slope and
    offset too, and by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from machine import machine
from torch import Tensor

from streamcl.benchmark.cells import SharedResources
from streamcl.capabilities.declaration import capabilities_of
from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.events import Sample
from streamcl.heads.solving import log_scores
from streamcl.learners.calibration import Calibration, ScoreCalibration, same_scores
from streamcl.learners.top_label_scaling import NEUTRAL
from streamcl.nn.device import Compute
from streamcl.protocols import Learner
from streamcl.runs.open import open_run
from streams.datasets.npz import npz

FOLDER = os.environ.get("STREAMCL_DEV_DATA", "../shared/data")
PACKS = ("office_caltech10", "grocery81", "emoji_dev", "fruits65_video", "cifar100_dev")
LEARNERS = ("ridge", "slda", "ncm", "ridge_lora")
VIT = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
TEST_IMAGES = 1000
FITTED = 256
FEW = 60

Outcomes: TypeAlias = list[tuple[float, bool]]
"""The confidences of predictions, and whether they were right."""


class Scores(NamedTuple):
    """Scores float64 [N, C] and targets int64 [N] of test and held-out images, and before learning.

    sizes: of the batches; a target may be a class without a finite score then.
    """

    test: Tensor
    test_targets: Tensor
    held_out: Tensor
    held_out_targets: Tensor
    before: Tensor
    before_targets: Tensor
    sizes: Tensor


def main() -> None:
    """Evaluate all streams, one after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default=",".join(PACKS))
    parser.add_argument("--learners", default=",".join(LEARNERS))
    parser.add_argument("--images", type=int, default=3000, help="training images of a pack, at most")
    parser.add_argument("--image-size", type=int, default=70)
    parser.add_argument("--scores", type=Path, default=Path("calibration-scores"))
    options = parser.parse_args()
    options.scores.mkdir(parents=True, exist_ok=True)
    shared = SharedResources()
    before = [f"before learning, {name}" for name in ("factor", "all", "chance")]
    columns = ("pack, test images", "learner", "accuracy", "own", "factor", "test", "few", "chance", *before)
    print(json.dumps(machine(Compute(torch.device("cpu"), "32-true"))))
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for pack in options.packs.split(","):
        for learner in options.learners.split(","):
            path = options.scores / f"{pack}-{learner}.npz"
            if not path.exists():
                np.savez(path, **recorded(pack, learner, options, shared)._asdict())
            with np.load(path) as archive:
                found = Scores(**{name: torch.from_numpy(archive[name]) for name in Scores._fields})
            figures = evaluated(found, log_scores if learner.startswith("ridge") else same_scores)
            print(f"| {pack}, {len(found.test)} | {learner} | {' | '.join(figures)} |", flush=True)


def evaluated(scores: Scores, link: Any) -> list[str]:
    """Return the columns of one pack and learner, whose factors are on what `link` makes of scores."""
    test, targets = scores.test, scores.test_targets
    right = float((test.argmax(dim=1) == targets).double().mean())
    held_out = scores.held_out, scores.held_out_targets
    fits = [fitted(link, *held_out, factor_alone=alone) for alone in (True, False)]
    own = [percent(error_of(outcomes_of(each.for_predictions(test), targets))) for each in fits]
    draws = {
        (alone, limit): [
            cross_fitted(link, test, targets, seed, limit=limit, factor_alone=alone) for seed in range(3)
        ]
        for alone, limit in ((False, FITTED), (False, FEW), (True, FITTED))
    }
    errors = {each: [error_of(made) for made in drawn] for each, drawn in draws.items()}
    tested = errors[False, FITTED]
    stream = [before_learning(link, scores, factor_alone=alone) for alone in (True, False)]
    return [
        f"{100 * right:.1f}",
        f"{', '.join(own)} ({len(scores.held_out)})",
        percent(np.mean(errors[True, FITTED])),
        f"{percent(np.mean(tested))} ({percent(min(tested))} - {percent(max(tested))})",
        percent(np.mean(errors[False, FEW])),
        by_chance(draws[False, FITTED][0]),
        *(percent(error_of(made)) for made in stream),
        by_chance(stream[1]),
    ]


def fitted(link: Any, scores: Tensor, targets: Tensor, *, factor_alone: bool = False) -> Calibration:
    """Return a calibration that is fitted to scores [N, C] and targets [N]."""
    calibration = Calibration(link)
    calibration.fit(scores, targets)
    if factor_alone:
        calibration.held_out_scaling = NEUTRAL
    return calibration


def outcomes_of(logits: Tensor, targets: Tensor) -> Outcomes:
    """Return the outcomes by the softmax of logits [N, C] with targets [N]."""
    confidence, column = logits.softmax(dim=1).max(dim=1)
    return list(zip(confidence.tolist(), (column == targets).tolist(), strict=True))


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the places of two halves: even and odd ones for seed 0, else by chance."""
    if seed == 0:
        return torch.arange(0, count, 2), torch.arange(1, count, 2)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def cross_fitted(
    link: Any, scores: Tensor, targets: Tensor, seed: int, *, limit: int, factor_alone: bool
) -> Outcomes:
    """Return the outcomes of both halves, each as fitted to at most so many samples of the other."""
    made, (one, other) = Outcomes(), halves(len(targets), seed)
    for half, left in ((one, other), (other, one)):
        some = half[:: max(1, -(-len(half) // limit))]
        calibration = fitted(link, scores[some], targets[some], factor_alone=factor_alone)
        made += outcomes_of(calibration.for_predictions(scores[left]), targets[left])
    return made


def before_learning(link: Any, scores: Scores, *, factor_alone: bool) -> Outcomes:
    """Return the outcomes of all predictions before learning, as the running numbers follow them."""
    calibration, made = Calibration(link), Outcomes()
    sizes = scores.sizes.tolist()
    for rows, targets in zip(scores.before.split(sizes), scores.before_targets.split(sizes), strict=True):
        known = int(rows.isfinite().any(dim=0).sum())  # the first columns are those of classes known
        if factor_alone:
            calibration.running.scaling = NEUTRAL
        logits = calibration.before_learning(rows[:, :known])
        made += outcomes_of(logits, targets) if known else [(0.0, False)] * len(targets)
        calibration.update(rows[:, :known], targets)
    return made


def recorded(pack: str, learner: str, options: argparse.Namespace, shared: SharedResources) -> Scores:
    """Return the scores of a run over the training images of a pack."""
    path = Path(FOLDER) / f"{pack}.npz"
    _, test = npz(path)
    step = max(1, len(test) // TEST_IMAGES)
    images = [test[place] for place in range(0, len(test), step)]
    with tempfile.TemporaryDirectory() as folder:
        write_training_images(path, Path(folder) / "train.npz", options.images)
        config = configuration(Path(folder), pack, learner)
        config["backbone"] |= {"image_size": options.image_size}
        with open_run(config, vit=shared.backbone) as run:
            shared.feature_cache.attach(run.learner, run.config)
            made = recorded_updates(calibrated(run.learner).calibration)
            for _ in run:
                pass
            before, targets = zip(*made, strict=True)
            width = len(run.learner.classes)
            return Scores(
                *scores_of(run.learner, images),
                *scores_of(run.learner, list(run.processor.parts.held_out)),
                torch.cat([_padded(each.double(), width) for each in before]),
                torch.cat(targets),
                torch.tensor([len(each) for each in targets]),
            )


def recorded_updates(calibration: Calibration) -> list[tuple[Tensor, Tensor]]:
    """Return a list to which each later update of a calibration appends its scores and targets."""
    made, update = list[tuple[Tensor, Tensor]](), calibration.update

    def recording(scores: Tensor, targets: Tensor) -> None:
        made.append((scores, targets))
        update(scores, targets)

    calibration.update = recording  # type: ignore[method-assign]
    return made


def _padded(scores: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, width - scores.shape[1]), value=-torch.inf)


def calibrated(learner: Learner) -> ScoreCalibration:
    """Return the calibration of a learner in closed form."""
    calibration = capabilities_of(learner).calibration
    assert isinstance(calibration, ScoreCalibration)
    return calibration


def scores_of(learner: Learner, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return scores float64 [N, C] and targets [N] of those samples whose class is known."""
    known = [each for each in samples if each.label in learner.classes]
    calibration = calibrated(learner)
    scores = [calibration.score(calibration.read(chunk)).double() for chunk in chunks(known)]
    targets = torch.tensor([learner.classes.index(each.label) for each in known])
    return torch.cat(scores), targets


def configuration(folder: Path, pack: str, learner: str) -> dict[str, Any]:
    """Return the configuration of a run over the training images in a folder."""
    parts = {"name": "disjoint", "parts": 10}
    return {
        "run_dir": str(folder / "run"),
        "source": {"name": "npz", "args": {"path": str(folder / "train.npz"), "test_percent": 0}},
        "scenario": {"name": "domain_incremental", "seed": 0} if pack == "office_caltech10" else parts,
        "backbone": dict(VIT),
        "batch": 64,
        "learner": learner,
        "checkpoint": {"every_samples": 10**9, "every_seconds": None, "keep": 1},
        "report": {"samples": 0},
    }


def write_training_images(pack: Path, path: Path, limit: int) -> None:
    """Write at most so many training images, evenly chosen from each class, with their domains."""
    with np.load(pack, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    train = np.flatnonzero(arrays["split"] == 0)
    of_class = [train[arrays["y"][train] == label] for label in set(arrays["y"])]
    chosen = np.sort(np.concatenate([each[_spread(len(each), limit / len(train))] for each in of_class]))
    kept = {name: arrays[name][chosen] for name in ("y", "d")} | {"meta": arrays["meta"]}
    if "x" in arrays:
        kept["x"] = arrays["x"][chosen]
    else:
        files = [arrays["jpg"][arrays["off"][i] : arrays["off"][i + 1]] for i in chosen]
        kept |= {"jpg": np.concatenate(files), "off": np.cumsum([0, *map(len, files)])}
    np.savez(path, **kept)


def _spread(count: int, share: float) -> Any:
    return np.unique(np.linspace(0, count - 1, min(count, max(1, int(share * count)))).astype(int))


def error_of(made: Outcomes) -> float:
    """Return the expected calibration error, in [0, 1]."""
    bins = ReliabilityBins()
    for confidence, right in made:
        bins.add(confidence, right=right)
    return bins.calibration_error or 0.0


def by_chance(made: Outcomes, draws: int = 100) -> str:
    """Return mean and 95 % point of the error where predictions are right as often as they state."""
    random = np.random.default_rng(0)
    errors = [error_of([(sure, random.random() < sure) for sure, _ in made]) for _ in range(draws)]
    return f"{percent(np.mean(errors))} ({percent(np.quantile(errors, 0.95))})"


def chunks(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Return the samples in batches."""
    return (samples[start : start + 64] for start in range(0, len(samples), 64))


def percent(share: float | np.floating[Any]) -> str:
    """Return a share in per cent, with one decimal."""
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
