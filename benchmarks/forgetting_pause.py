"""Measures how long a stream pauses for an exact request, and the parts of that time.

python benchmarks/forgetting_pause.py OUT [--statistics per_class] [--learner ridge_lora] [--samples 1500]
    [--device cuda] [--images random] [--weights none]

The demo's digits, or noise, pass once (98 px, ViT-S by pip), then classes are forgotten one by one. With
`--statistics` no sample is fetched; without, each class is derived again. Seconds of wall clock and of
processor time, the fastest and the median request.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from vit_options import add_vit_options, source_of, vit_of

from streamcl.forgetting.erasure import eraser
from streamcl.forgetting.monitoring.utility import UtilityBaseline, UtilityProbe
from streamcl.heads import cross_validation
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.ridge_solver import RidgeSolver
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.processor.loop import StreamProcessor
from streamcl.runs.open import open_run
from streamcl.runs.run import Run
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.plain_state import state_hash

# Functions and not names, so that mypy refuses one that is no longer there.
PARTS: tuple[tuple[object, Callable[..., Any], str], ...] = (
    (eraser, state_hash, "hashes of the state"),
    (RidgeHead, RidgeHead._smallest_of, "check of what remains"),
    (cross_validation, cross_validation.cross_validated_ridge, "how strong the ridge is to be"),
    (RidgeSolver, RidgeSolver._solved, "solve"),
    (UtilityProbe, UtilityProbe.before, "accuracy before"),
    (UtilityBaseline, UtilityBaseline.after, "accuracy after, its solve included"),
    (eraser.Eraser, eraser.Eraser.execute, "erase in memory"),
    (StreamProcessor, StreamProcessor.commit, "commit"),
    (Checkpoints, Checkpoints.save, "checkpoint, in the background"),
    (eraser.Eraser, eraser.Eraser.finalise, "finalise: wait for it, older ones, logs, receipt"),
    (ClosedFormStatistics, ClosedFormStatistics.rows_of, "features derived again"),
)


def main() -> None:
    """Run the stream, forget classes, print a table."""
    arguments = _arguments()
    with open_run(_configuration(arguments), fresh=True) as run:
        count = sum(1 for _ in run)
        classes = list(run.learner.classes)[:-1]
        spent: defaultdict[str, float] = defaultdict(float)
        for owner, function, label in PARTS:
            _time(owner, function, label, spent)
        pauses = [_forget(run, name, spent) for name in classes]
    print(f"{count} samples, {len(pauses)} classes; seconds, fastest and median")
    for label in ("whole pause", "processor time", *(part[2] for part in PARTS)):
        values = [each.get(label, 0.0) for each in pauses]
        print(f"{label:48s} {min(values):7.3f} {median(values):7.3f}")


def _forget(run: Run, label: str, spent: dict[str, float]) -> dict[str, float]:
    spent.clear()
    run.forget(label=label, guarantee="exact")
    wall, used = time.perf_counter(), time.process_time()
    run.processor.forget()
    return {
        **spent,
        "whole pause": time.perf_counter() - wall,
        "processor time": time.process_time() - used,
    }


def _time(owner: object, function: Callable[..., Any], label: str, spent: dict[str, float]) -> None:
    real: Callable[..., Any] = getattr(owner, function.__name__)

    def timed(*values: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*values, **options)
        finally:
            spent[label] += time.perf_counter() - began

    setattr(owner, function.__name__, timed)


def _configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.out.mkdir(parents=True, exist_ok=True)
    return {
        "name": "pause",
        "run_dir": str(arguments.out / "run"),
        "source": source_of(arguments, arguments.out, arguments.samples),
        "device": arguments.device,
        "scenario": "iid",
        "batch": 64,
        "max_samples": arguments.samples,
        "backbone": vit_of(arguments),
        "learner": arguments.learner,
        "forgetting": {"keep_statistics": arguments.statistics, "on_relapse": "ignore"},
        "evaluate": {"every_samples": None, "at_stream_end": False, "at_part_end": False},
        "threads": 2,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--statistics", choices=["per_class", "per_subject"])
    parser.add_argument("--learner", choices=["ridge_lora", "ridge"], default="ridge_lora")
    parser.add_argument("--samples", type=int, default=1500)
    add_vit_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
