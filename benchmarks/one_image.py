"""Measures a prediction of one image: padded to the batch of the run, read alone, and by a command.

python benchmarks/one_image.py [--samples 512] [--repeats 15] [--device cuda] [--images random]
    [--weights none] [--commands 7]

The demo's digits, or noise, pass once (98 px, ViT-S by pip, batches of 64, learner ridge_lora), then the
learner of the checkpoint predicts one image in both ways, taking turns. Milliseconds, median (quartiles), and
the median ratio of a turn, by the wall clock and of processor time, which other programs disturb less. Then
`streamcl predict RUN IMAGE` in a process of its own, with all imports and the reading of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

from machine import machine
from PIL import Image
from vit_options import add_vit_options, source_of, vit_of

from streamcl.events import Sample
from streamcl.factory.backbone import SharedBackbones, build_compute
from streamcl.protocols import Learner
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run


def main() -> None:
    """Run the stream, predict in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--commands", type=int, default=7)
    add_vit_options(parser)
    arguments = parser.parse_args()
    shared = SharedBackbones()
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "source": source_of(arguments, Path(folder), arguments.samples),
            "backbone": vit_of(arguments),
            "device": arguments.device,
            "batch": 64,
            "max_samples": arguments.samples,
        }
        run_dir = str(Path(folder) / "run")
        with open_run({**config, "run_dir": run_dir}, vit=shared.backbone) as run:
            for _ in run:
                pass
            sample = Sample("one", next(iter(run.source.info.holdout)).samples[0].image)
        contestants = {
            name: load_learner(run_dir, vit=shared.backbone, fitted=fitted)
            for name, fitted in (("padded", False), ("alone", True))
        }
        print(json.dumps(machine(build_compute(contestants["alone"][1]))))
        image = Path(folder) / "one.png"
        Image.fromarray(sample.image).save(image)
        _command(run_dir, image)  # fills the caches of the disk
        commands = [_command(run_dir, image) for _ in range(arguments.commands)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(arguments.repeats + 1):
        for name, (learner, _) in contestants.items():
            taken = _milliseconds(learner, sample)
            if turn:  # the first one solves for the weights
                times[name].append(taken)
    print("| | wall clock | processor time |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {' | '.join(map(_spread, zip(*values, strict=True)))} |")
    pairs = zip(times["padded"], times["alone"], strict=True)
    ratios = zip(*[(a / c, b / d) for (a, b), (c, d) in pairs], strict=True)
    print(f"| ratio | {' | '.join(f'{median(each):.1f}' for each in ratios)} |")
    print(f"| streamcl predict | {' | '.join(map(_spread, zip(*commands, strict=True)))} |")


def _command(run: str, image: Path) -> tuple[float, float]:
    """Return wall clock and processor time of `streamcl predict`, in milliseconds."""
    command = [sys.executable, "-m", "streamcl", "predict", run, str(image)]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1000 * (time.perf_counter() - began), 1000 * used


def _spread(values: Sequence[float]) -> str:
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.1f} ({low:.1f} - {high:.1f})"


def _milliseconds(learner: Learner, sample: Sample) -> tuple[float, float]:
    """Return wall clock and processor time of one prediction."""
    began, used = time.perf_counter(), time.process_time()
    learner.predict([sample])
    return 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - used)


if __name__ == "__main__":
    main()
