"""Runs a tiny fake model for a million steps and shows that nothing grows but the logs.

    python benchmarks/soak.py [--steps 1000000] [--work FOLDER]

The real loop, detector, metrics, sinks and checkpoints; a learner and a source that cost nothing. A hundred
times on the way memory, open files, threads, the size of a checkpoint and the processor time of a step are
noted. The exit code is 0 where, over the second half, the line fitted to each rises by no more than allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from streamcl.checkpoint import BackgroundSaver, Checkpoints
from streamcl.evaluation import Examiner
from streamcl.events import Batch, Event, Guess, Lesson, Sample, StreamInfo
from streamcl.gallery import Gallery
from streamcl.metrics import HoldoutHistory, Prequential, Throughput, memory_mb
from streamcl.processor import Pace, StreamProcessor
from streamcl.protocols import State
from streamcl.shift import build_detector
from streamcl.sinks import JsonlSink
from streams.guarded import Checked, ReadAhead

ALLOWED = {  # how far each fitted line may rise over the second half
    "memory_mb": 2.0,
    "files": 0.0,
    "threads": 0.0,
    "checkpoint_bytes": 2048.0,  # offsets of shifts, a few bytes each, and of held-out figures
    "step_time": 0.15,  # as a share of the median step's
}
CLASSES = tuple(f"class {number}" for number in range(10))
IMAGE = np.zeros((4, 4, 3), np.uint8)


class Endless:
    """Batches of one sample, `steps` of them; the label depends on the offset alone."""

    replayable = True

    def __init__(self, steps: int) -> None:
        self.info = StreamInfo("soak", steps)
        self._offset, self._end = 0, steps

    def __iter__(self) -> Iterator[Event]:
        while self._offset < self._end:
            offset = self._offset
            label = CLASSES[(offset // 1000 + offset) % len(CLASSES)]
            self._offset += 1
            yield Batch(offset, (Sample(f"{offset:09d}", IMAGE, label),))

    def state_dict(self) -> State:
        return {"offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._offset = state["offset"]


class Tiny:
    """A learner of ten counts, whose loss rises for a while every 20,000 steps."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._steps = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._counts)

    def predict(self, samples: Any) -> tuple[Guess, ...]:
        return (Guess(next(iter(self._counts), None), 0.5),) * len(samples)

    def learn(self, batch: Batch) -> Lesson:
        guesses = self.predict(batch.samples)
        for sample in batch.samples:
            self._counts[str(sample.label)] = self._counts.get(str(sample.label), 0) + 1
        self._steps += 1
        since = self._steps % 20_000
        loss = 3.0 * 0.5 ** (since / 200) + 0.1 + 0.01 * (self._steps * 7919 % 101) / 101
        return Lesson(guesses, (loss,))

    def consolidate(self) -> Mapping[str, Any]:
        return {}

    def state_dict(self) -> State:
        return {"counts": dict(self._counts), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts, self._steps = dict(state["counts"]), state["steps"]


class Clock:
    """What a run's own clock does."""

    def __init__(self) -> None:
        self._throughput = Throughput()
        self.state_dict, self.load_state_dict = self._throughput.state_dict, self._throughput.load_state_dict

    def read(self, images: int) -> Pace:
        self._throughput.update(images - self._throughput.images)
        return Pace(self._throughput.images_per_s, self._throughput.seconds, memory_mb())


def soak(steps: int, work: Path) -> dict[str, list[float]]:
    """Run, and note the figures a hundred times."""
    work.mkdir(parents=True, exist_ok=True)
    vault = Checkpoints(work / "checkpoints", fingerprint={})
    saver, sink = BackgroundSaver(vault), JsonlSink(work)
    source = ReadAhead(Checked(Endless(steps)))
    processor = StreamProcessor(
        source,
        Tiny(),
        build_detector("relative"),
        scores=Prequential(),
        history=HoldoutHistory(),
        examiner=Examiner(()),
        pace=Clock(),
        sink=sink,
        gallery=Gallery(work / "samples", 2),
        vault=saver,
        commit_every=max(1, steps // 200),
    )
    processor.begin()
    notes: dict[str, list[float]] = {name: [] for name in ("step", *ALLOWED)}
    times: list[float] = []
    before = time.thread_time()
    for number, _ in enumerate(processor.run(), 1):
        now = time.thread_time()
        times.append(now - before)
        before = now
        if number % max(1, steps // 100) == 0:
            note(notes, number, times, vault)
            times.clear()
            before = time.thread_time()
    saver.close()
    sink.close()
    source.close()
    return notes


def note(notes: dict[str, list[float]], number: int, times: list[float], vault: Checkpoints) -> None:
    notes["step"].append(number)
    notes["memory_mb"].append(memory_mb())
    notes["files"].append(open_files())
    notes["threads"].append(threading.active_count())
    notes["step_time"].append(median(times))
    notes["checkpoint_bytes"].append(size_of(vault))


def open_files() -> int:
    """Of this process, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def size_of(vault: Checkpoints) -> float:
    """Bytes of the oldest checkpoint, which nobody is writing."""
    for path in vault.paths():
        try:
            return float(sum(member.stat().st_size for member in path.iterdir()))
        except FileNotFoundError:
            continue  # replaced in the meantime
    return 0.0


def rises(notes: dict[str, list[float]]) -> dict[str, float]:
    """How far a line fitted to the second half of each figure rises there.

    By Theil and Sen's median of slopes, which a few figures from a busy moment do not move.
    """
    half = len(notes["step"]) // 2
    steps = notes["step"][half:]
    found = {}
    for name in ALLOWED:
        values = notes[name][half:]
        pairs = [(i, j) for i in range(len(steps)) for j in range(i)]
        slopes = [(values[i] - values[j]) / (steps[i] - steps[j]) for i, j in pairs]
        found[name] = median(slopes) * (steps[-1] - steps[0])
    found["step_time"] /= median(notes["step_time"][half:])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="where the run goes; a temporary folder by default")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="streamcl-soak-"))
    began = time.monotonic()
    notes = soak(options.steps, work)
    found = rises(notes)
    last = {name: values[-1] for name, values in notes.items()}
    result = {"rise": found, "allowed": ALLOWED, "last": last}
    print(json.dumps(result | {"seconds": round(time.monotonic() - began, 1), "work": str(work)}, indent=2))
    return 0 if all(found[name] <= limit for name, limit in ALLOWED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
