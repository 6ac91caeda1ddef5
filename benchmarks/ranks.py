"""Two ranks of one thread each against one process of two threads: images a second of the whole loop.

    python benchmarks/ranks.py [--learners online_lora ridge_lora] [--repeats 5] [--batches 40] [--size 70]

Random images go through a ViT-S/14 of 11 blocks with random weights, in batches of 64. The two take turns;
each figure is that of the batches after the first ten, by the clock of the run itself. Printed are minimum,
median and maximum of each, and of the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from published_learner import learner_options

WARM_UP = 10  # batches
BATCH = 64


class Noise:
    """Random images of twenty classes, read by index."""

    def __init__(self, records: int, size: int) -> None:
        self.records, self.size = records, size

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.records:
            raise IndexError(index)
        image = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), np.uint8)
        return {"image": image, "label": f"class {index % 20}", "id": f"{index}"}


def config(learner: str, batches: int, size: int, precision: str) -> dict[str, Any]:
    return {
        "name": f"ranks-{learner}",
        "source": {"class": "ranks:Noise", "args": {"records": batches * BATCH, "size": size}},
        "batch": BATCH,
        "backbone": {
            "name": "vit_small_patch14_dinov2", "weights": "none", "image_size": size, "depth": 11
        },
        "learner": learner_options(learner),
        "precision": precision,
        "device": "cpu",
        "evaluate": {"hold_out": 0, "at_stream_end": False, "at_part_end": False, "every_samples": None},
    }  # fmt: skip


def images_per_s(folder: Path, name: str, launcher: list[str], threads: int) -> float:
    """The speed of one run, started by `launcher` with so many threads a process."""
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    command = [sys.executable, *launcher, "-m", "streamcl", "run", "stream.json", "--quiet"]
    overrides = ["--set", f"run_dir={name}", "--set", f"threads={threads}"]
    done = subprocess.run(
        [*command, *overrides], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    steps = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    clock = [(step["offset"], step["seconds"]) for step in steps if step["kind"] == "step"]
    (before, began), (after, ended) = clock[WARM_UP - 1], clock[-1]
    return float((after - before) / (ended - began))


def compared(learner: str, options: argparse.Namespace) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"one process, 2 threads": [], "two ranks, 1 thread each": []}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launchers: tuple[list[str], list[str]] = ([], torchrun)
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="streamcl-ranks-") as work:
            folder = Path(work)
            stream = config(learner, options.batches, options.size, options.precision)
            (folder / "stream.json").write_text(json.dumps(stream))
            arms = list(zip(found, launchers, (2, 1), strict=True))
            for number, (name, launcher, threads) in enumerate(arms if repeat % 2 else arms[::-1]):
                found[name].append(images_per_s(folder, f"run-{number}", launcher, threads))
    return found


def spread(values: list[float]) -> str:
    return f"{min(values):8.2f} {statistics.median(values):8.2f} {max(values):8.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learners", nargs="+", default=["online_lora", "ridge_lora", "ridge"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--size", type=int, default=70)
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    options = parser.parse_args()
    if options.batches <= WARM_UP + 1:
        parser.error(f"--batches must be more than {WARM_UP + 1}")
    print(f"{'images/s':44}{'min':>8} {'median':>8} {'max':>8}")
    for learner in options.learners:
        found = compared(learner, options)
        for name, speeds in found.items():
            print(f"{learner:14}{name:30}{spread(speeds)}")
        one, two = found.values()
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        print(f"{learner:14}{'ranks over threads':30}{spread(ratios)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
