"""Runs a live source through a week in an hour: nothing grows, no record is lost or doubled.

    python benchmarks/live_soak.py [--source folder] [--minutes 60] [--rate 8]

`streamcl run` learns from a folder or from a private Redis, with a tiny backbone, while this script plays a
day of seven in each seventh of the time: a quiet night, a steady day, a burst at ten times the rate, files or
entries that are cleaned up once they are learned, times of files that jump back and ahead by a day, a broker
that is killed and comes back, and on the first three days a `kill -9` of the run, which the same command
continues. Every few seconds the run's memory, open files, threads and the size of its newest checkpoint are
noted. The exit code is 0 where each line fitted over the second half, which is one process, rises by no more
than allowed, and the ids that were predicted are those that were sent, each once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from live import FEEDS, jpeg

DAYS = 7
ALLOWED = {"memory_mb": 8.0, "files": 1.0, "threads": 1.0, "checkpoint_bytes": 65536.0}
"""How far each fitted line may rise over the second half; a checkpoint holds 16 bytes of each file taken."""
KEPT = 500  # records that are not cleaned up yet
CONFIG = {
    "name": "soak",
    "run_dir": "run",
    "batch": {"size": 16, "max_wait": "500ms"},
    "backbone": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 32,
        "args": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    },
    "learner": {"name": "ridge", "blocks": [1, 2]},
    "checkpoint": {"every_samples": 100_000, "every_seconds": "5s", "delivery": "exactly_once"},
    "evaluate": {"hold_out": 0, "every_samples": None},
    "precision": "32-true",
    "threads": 1,
    "report": {"samples": 0},
}


class Run:
    """The command line in a folder, started again after each kill."""

    def __init__(self, work: Path, source: dict[str, Any]) -> None:
        self.work = work
        (work / "soak.yaml").write_text(json.dumps({**CONFIG, "source": source}))
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "streamcl", "run", "soak.yaml", "--quiet"]
        self.process = subprocess.Popen(command, cwd=self.work, stderr=(self.work / "log").open("ab"))

    def end(self, which: int) -> int:
        self.process.send_signal(which)
        return self.process.wait()

    def predicted(self) -> list[str]:
        path = self.work / "run" / "predictions.jsonl"
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")[0]
        return [Path(json.loads(line)["id"]).stem for line in whole.splitlines()]

    def figures(self) -> dict[str, float]:
        """The run's memory, handles and threads by the system, and the size of its newest checkpoint."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        found = sorted((self.work / "run" / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in found[-1].rglob("*")) if found else 0
        return {
            "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "files": len(list((proc / "fd").iterdir())),
            "checkpoint_bytes": size,
        }


def pace(day: float, rate: float) -> float:
    """Return the records per second at a time of the day in [0, 1): night, day, burst, day."""
    return 0.0 if day < 0.3 else 10 * rate if 0.6 <= day < 0.65 else rate


def play(
    run: Run, feed: Any, seconds: float, rate: float, sent: list[str], rng: random.Random
) -> Iterator[dict[str, float]]:
    """Play the week; yield the figures of the run every few seconds. sent: takes the ids."""
    began, due, noted, done, removed = time.monotonic(), 0.0, 0.0, set[int](), 0
    while (now := time.monotonic() - began) < seconds:
        day, hour = divmod(now / seconds * DAYS, 1.0)
        due += pace(hour, rate) * 0.05
        while due >= 1.0:
            due -= 1.0
            name = f"{rng.randrange(10**6):06}-{len(sent):07}"
            feed.publish(name, jpeg(len(sent)))
            sent.append(name)
            if len(sent) % 7 == 0 and hasattr(feed, "root"):  # the camera's clock jumps
                at = time.time() + rng.choice((-86_400, 86_400))
                os.utime(feed.root / "a" / f"{name}.jpg", (at, at))
        if hour > 0.8 and int(day) not in done:
            done.add(int(day))
            removed = clean_up(feed, sent, set(run.predicted()), removed)
            feed.disturb()
            if int(day) < 3:
                run.end(signal.SIGKILL)
                run.start()
        if now - noted > seconds / 200 and run.process.poll() is None:
            noted = now
            with suppress(OSError):
                yield run.figures()
        time.sleep(0.05)


def clean_up(feed: Any, sent: list[str], predicted: set[str], removed: int) -> int:
    """Remove what was learned long ago, after the first `removed`; return how many are gone then."""
    old = list(takewhile(predicted.__contains__, sent[removed:-KEPT]))
    feed.remove(old)
    return removed + len(old)


def rises(notes: list[dict[str, float]]) -> dict[str, float]:
    """Return the rise of the line fitted to each figure over the second half."""
    half = notes[len(notes) // 2 :]
    at = np.linspace(0.0, 1.0, len(half))
    return {name: float(np.polyfit(at, [note[name] for note in half], 1)[0]) for name in ALLOWED}


def main() -> int:
    """Play the week, print what grew, and compare the ids."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", choices=sorted(FEEDS), default="folder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=8.0)
    args = parser.parse_args()
    with TemporaryDirectory() as temporary, closing(FEEDS[args.source](Path(temporary))) as feed:
        run = Run(Path(temporary), feed.source())
        ids: list[str] = []
        notes = list(play(run, feed, 60 * args.minutes, args.rate, ids, random.Random(0)))
        sent = Counter(ids)
        deadline = time.monotonic() + 60
        while len(run.predicted()) < sent.total() and time.monotonic() < deadline:
            time.sleep(0.2)
        code = run.end(signal.SIGTERM)
        found, risen = Counter(run.predicted()), rises(notes)
        same = found == sent
        result = {
            "source": args.source,
            "minutes": args.minutes,
            "records": sent.total(),
            "exit_code": code,
            "ids_equal": same,
            "lost": (sent - found).total(),
            "doubled": (found - sent).total(),
            "last": notes[-1],
            "rise_over_second_half": {name: round(value, 2) for name, value in risen.items()},
        }
    print(json.dumps(result, indent=2))
    return 0 if same and all(risen[name] <= most for name, most in ALLOWED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
