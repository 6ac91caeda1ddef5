"""Measures how far confidences are from accuracy on images that are never learned, before and after a fit.

    python benchmarks/calibration.py [--packs office_caltech10,...] [--learners ridge,...] [--images 4000]
                                     [--image-size 70]

Each learner passes once over the training images of a development pack (STREAMCL_DEV_DATA names their folder;
ViT-S by pip, its first 11 blocks, batches of 64, ten disjoint parts or one domain after the other), as a run
does whose source has no held-out images: 5 % of the stream are held out. Printed is the expected calibration
error (15 bins) in per cent, one line a pack and learner:

fixed: on the pack's test images, with the factor on scores that was built in before this was fitted.
own: on the same images, with the factor fitted to what the run has held out of its stream; in brackets how
    many those are.
test: on each half of the test images with the factor fitted to the other half, as where a source has held-out
    images of its own, which need not be like those of the stream.
chance: what perfect confidences of that size would come to on so few images.
before learning: of all predictions of the stream, new classes included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from machine import machine

from streamcl.benchmark.cells import SharedResources
from streamcl.capabilities.declaration import capabilities_of
from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.events import HoldoutPart, Sample
from streamcl.learners.calibration import ScoreCalibration
from streamcl.learners.holdout_calibration import HoldoutCalibrator
from streamcl.nn.device import Compute
from streamcl.protocols import Learner
from streamcl.runs.open import open_run
from streams.datasets.npz import npz

FOLDER = os.environ.get("STREAMCL_DEV_DATA", "../shared/data")
PACKS = ("cifar100_dev", "office_caltech10", "grocery81", "emoji_dev", "fruits65_video", "core50_micro")
FIXED = {"ridge": 10.0, "slda": 1.0, "ncm": 10.0, "ridge_lora": 16.0}
VIT = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
TEST_IMAGES = 1000

Outcome: TypeAlias = tuple[float, bool]
"""The confidence of a prediction, and whether it was right."""


def main() -> None:
    """Run all streams, one after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", default=",".join(PACKS))
    parser.add_argument("--learners", default=",".join(FIXED))
    parser.add_argument("--images", type=int, default=4000, help="training images of a pack, at most")
    parser.add_argument("--image-size", type=int, default=70)
    arguments = parser.parse_args()
    shared = SharedResources()
    columns = ("pack", "learner", "accuracy", "fixed", "own", "test", "chance", "before learning")
    print(json.dumps(machine(Compute(torch.device("cpu"), "32-true"))))
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for pack in arguments.packs.split(","):
        for learner in arguments.learners.split(","):
            figures = measured(Path(FOLDER) / f"{pack}.npz", learner, arguments, shared)
            print(f"| {' | '.join((pack, learner, *figures))} |", flush=True)


def measured(pack: Path, learner: str, options: argparse.Namespace, shared: SharedResources) -> list[str]:
    """Return the columns of one pack and learner."""
    _, test = npz(pack)
    step = max(1, len(test) // TEST_IMAGES)
    images = [test[place] for place in range(0, len(test), step)]
    with tempfile.TemporaryDirectory() as folder:
        write_training_images(pack, Path(folder) / "train.npz", options.images)
        config = configuration(Path(folder), pack.stem, learner)
        config["backbone"] |= {"image_size": options.image_size}
        with open_run(config, vit=shared.backbone) as run:
            shared.feature_cache.attach(run.learner, run.config)
            for _ in run:
                pass
            summary = run.summary()
            known = [each for each in images if each.label in run.learner.classes]
            return [
                f"{100 * accuracy(run.learner, known):.1f}",
                percent(error_of(outcomes(run.learner, known, FIXED[learner]))),
                f"{percent(error_of(outcomes(run.learner, known)))} ({summary.get('held_out', 0)})",
                percent(error_of(fitted := cross_fitted(run.learner, known))),
                percent(by_chance(fitted)),
                percent(summary["prequential"]["calibration_error"]),
            ]


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


def accuracy(learner: Learner, samples: Sequence[Sample]) -> float:
    """Return the share of samples predicted right, in [0, 1]."""
    predicted = [each for chunk in chunks(samples) for each in learner.predict(chunk)]
    return float(np.mean([one.label == two.label for one, two in zip(predicted, samples, strict=True)]))


def outcomes(learner: Any, samples: Sequence[Sample], factor: float | None = None) -> list[Outcome]:
    """Return each prediction's confidence, with another factor on the scores where one is given."""
    made, calibration = list[Outcome](), capabilities_of(learner).calibration
    assert isinstance(calibration, ScoreCalibration)
    for chunk in chunks(samples):
        if factor is None:
            logits = learner.logits(chunk)
        else:
            logits = factor * calibration.score(calibration.read(chunk))
        confidence, column = logits.softmax(dim=1).max(dim=1)
        right = [
            learner.classes[best] == each.label for best, each in zip(column.tolist(), chunk, strict=True)
        ]
        made += zip(confidence.tolist(), right, strict=True)
    return made


def cross_fitted(learner: Learner, samples: Sequence[Sample]) -> list[Outcome]:
    """Return the outcomes of both halves, each with the factor fitted to at most 256 samples of the other."""
    halves, made = (samples[::2], samples[1::2]), list[Outcome]()
    for one, other in (halves, halves[::-1]):
        HoldoutCalibrator(learner, [HoldoutPart("half", one)]).fit()
        made += outcomes(learner, other)
    return made


def error_of(made: Sequence[Outcome]) -> float:
    """Return the expected calibration error, in [0, 1]."""
    bins = ReliabilityBins()
    for confidence, right in made:
        bins.add(confidence, right=right)
    return bins.calibration_error or 0.0


def by_chance(made: Sequence[Outcome], draws: int = 50) -> float:
    """Return the mean error where each prediction is right with the probability that it states."""
    random = np.random.default_rng(0)
    return float(
        np.mean([error_of([(sure, random.random() < sure) for sure, _ in made]) for _ in range(draws)])
    )


def chunks(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Return the samples in batches."""
    return [samples[start : start + 64] for start in range(0, len(samples), 64)]


def percent(share: float) -> str:
    """Return a share in per cent, with one decimal."""
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
