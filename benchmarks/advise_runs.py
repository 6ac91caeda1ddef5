"""Are the costs that `streamcl advise` states those of a run? Of the smallest, the recommended, the largest.

    python benchmarks/advise_runs.py [CONFIG] [--latency 20] [--samples 600] [--set A.B=VALUE]

Each of the three candidates is run on the first samples of the stream, and predicts images by what it has
learned, one alone. Printed are the milliseconds and MiB as they were stated and as they are: the shortest
processor time of the thread that predicts, and the peak of the memory of `streamcl run`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from streamcl.advice.advise import Advice, AssessedCandidate, advise
from streamcl.advice.candidates import configured_backbone
from streamcl.advice.front import Budget
from streamcl.config.load import load_config
from streamcl.config.options.learner import learner_name
from streamcl.events import Sample
from streamcl.factory.probe import draw_probe
from streamcl.runs.learner import load_learner


def run_peak(command: Sequence[str]) -> float:
    """Run a command and return the peak of its resident memory, in MiB."""
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except OSError:
            break
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) / 1024)
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return peak


def prediction_ms(folder: Path, samples: list[Sample]) -> float:
    """Return the shortest time of one prediction by what a run has learned."""
    learner, _ = load_learner(folder, fitted=True)
    times = []
    for sample in [*samples[:2], *samples * 3]:
        began = time.thread_time()
        learner.predict([sample])
        times.append(1000 * (time.thread_time() - began))
    return min(times[2:])


def shown(advice: Advice) -> dict[str, AssessedCandidate]:
    """The candidates that are run, by what they are."""
    ordered = sorted(
        advice.assessed, key=lambda each: (each.candidate.image_size, each.candidate.depth, each.costs.memory)
    )
    return {"smallest": ordered[0], "recommended": advice.shown, "largest": ordered[-1]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/icons.yaml")
    parser.add_argument("--latency", type=float, default=20.0, help="milliseconds")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    own = tuple(arguments.overrides)
    advice = advise(
        lambda further: load_config(arguments.config, (*own, *further)), Budget(arguments.latency / 1000)
    )
    config = load_config(arguments.config, own)
    samples = list(islice(next(draw_probe(config, 512).chunks(8)), 8))
    print(
        f"{configured_backbone(config)}, {learner_name(config.learner)}; model within {advice.latency_error}"
    )
    print("| | size, depth, blocks | ms stated | ms | MB stated | MB |\n|---|---|---:|---:|---:|---:|")
    for name, each in shown(advice).items():
        with tempfile.TemporaryDirectory() as folder:
            further = [*own, *each.overrides, f"max_samples={arguments.samples}", f"run_dir={folder}/run"]
            changes = [part for change in further for part in ("--set", change)]
            peak = run_peak([sys.executable, "-m", "streamcl", "run", arguments.config, "--quiet", *changes])
            found = prediction_ms(Path(folder) / "run", samples)
        where = f"{each.candidate.image_size}, {each.candidate.depth}, {list(each.candidate.blocks)}"
        stated = f"{1000 * each.costs.seconds:.1f}{'' if each.measured else ' (model)'}"
        memory = each.costs.memory / 2**20
        print(f"| {name} | {where} | {stated} | {found:.1f} | {memory:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
