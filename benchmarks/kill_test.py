"""Kills the real command line from outside, at random moments, and compares the end with an unharmed run's.

    python benchmarks/kill_test.py CONFIG.yaml [--kills 200] [--minutes 60] [--longest 12] [--seed 0]

benchmarks/kill_test.yaml is a configuration for it: real images, the default learner, a request to forget.

The configuration runs once undisturbed and once under `kill -9`, resumed each time by the same command.
Compared are summary.json (but for "timing" and the directory's name), predictions.jsonl byte by byte, and
the sha256 of the state in the last checkpoint (but for file positions and the clock). The exit code is 0
where all are equal and as many kills landed as were asked for; after `--minutes` no more are made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import verify_checkpoint
from streamcl.storage.plain_state import state_hash


def command(config: Path, run_dir: Path, overrides: list[str]) -> list[str]:
    sets = [part for override in (f"run_dir={run_dir}", *overrides) for part in ("--set", override)]
    return [sys.executable, "-m", "streamcl", "run", str(config), "--quiet", *sets]


def run_undisturbed(config: Path, run_dir: Path, overrides: list[str]) -> float:
    """Run to the end undisturbed; seconds."""
    began = time.monotonic()
    subprocess.run(command(config, run_dir, overrides), check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def offset_of(run_dir: Path) -> int:
    paths = list_checkpoints(run_dir / "checkpoints")
    return int(verify_checkpoint(paths[-1]).manifest["offset"]) if paths else -1


def killed(
    config: Path, work: Path, overrides: list[str], kills: int, longest: float, seed: int, end: float
) -> tuple[Counter[str], list[Path]]:
    """Kill and resume until enough kills have landed, or until the clock says `end`, then let the run end.

    Returns where they landed, and the runs.

    One kill in four comes at any moment of the first `longest` seconds, the time that a process needs to
    start included; the others within `longest` seconds after it has begun to write in the run directory.
    A run that comes to its end before is left as it is, and another one is begun.
    """
    rng, landed = random.Random(seed), Counter[str]()
    runs = [work / "killed-1"]
    while landed.total() < kills and time.monotonic() < end:
        before, size = offset_of(runs[-1]), size_of_logs(runs[-1])
        with subprocess.Popen(command(config, runs[-1], overrides), stderr=subprocess.DEVNULL) as process:
            if rng.random() < 0.75:
                while process.poll() is None and size_of_logs(runs[-1]) <= size:
                    time.sleep(0.01)
            try:
                process.wait(timeout=rng.uniform(0, longest))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                new = offset_of(runs[-1]) != before
                landed["some new checkpoints" if new else "no new checkpoint"] += 1
                print(f"{landed.total()} kills in {len(runs)} runs", file=sys.stderr, flush=True)
                continue
        if process.returncode != 0:
            raise SystemExit(f"the resumed run failed with exit code {process.returncode}")
        runs.append(work / f"killed-{len(runs) + 1}")
    run_undisturbed(config, runs[-1], overrides)
    return landed, runs


def size_of_logs(run_dir: Path) -> int:
    """Bytes of the run's records; they are cut back when a run is resumed, and grow from there."""
    return sum(path.stat().st_size for path in run_dir.glob("*.jsonl"))


def left(run_dir: Path) -> dict[str, Any]:
    summary = json.loads((run_dir / "summary.json").read_text())
    state = verify_checkpoint(list_checkpoints(run_dir / "checkpoints")[-1]).state
    return {
        "summary": {name: value for name, value in summary.items() if name not in {"timing", "run"}},
        "predictions": hashlib.sha256((run_dir / "predictions.jsonl").read_bytes()).hexdigest(),
        "state": state_hash({name: part for name, part in state.items() if name not in {"sinks", "meter"}}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="make no kills after so many")
    parser.add_argument("--longest", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the two runs go; a temporary folder by default")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="streamcl-kill-test-"))
    seconds = run_undisturbed(options.config, work / "whole", options.overrides)
    began = time.monotonic()
    landed, runs = killed(
        options.config,
        work,
        options.overrides,
        options.kills,
        options.longest,
        options.seed,
        began + 60 * options.minutes,
    )
    expected = left(work / "whole")
    equal = {name: all(left(run)[name] == expected[name] for run in runs) for name in expected}
    result = {
        "kills": landed.total(),
        "where": dict(landed),
        "runs": len(runs),
        "equal": equal,
        "seconds_undisturbed": round(seconds, 1),
        "seconds_under_kills": round(time.monotonic() - began, 1),
        "samples": expected["summary"]["samples"],
        "state": expected["state"][:16],
        "work": str(work),
    }
    print(json.dumps(result, indent=2))
    return 0 if all(equal.values()) and landed.total() >= options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
