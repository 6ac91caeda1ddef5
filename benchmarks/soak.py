"""Runs a model for a very long time and shows that nothing grows but the logs.

    python benchmarks/soak.py [--steps 1000000] [--work FOLDER]
    python benchmarks/soak.py --vit [--steps 10000] [--side 42] [--batch 2] [--work FOLDER]

The real loop, detector, metrics, sinks and checkpoints; a learner and a source that cost nothing, or the
default learner on the ViT-S of the demonstration. A hundred times on the way memory, open files, threads,
the size of a checkpoint and the processor time of a step are noted, and printed to stderr. A step's time is
told in yardsticks, a fixed piece of work that is timed between steps: on a processor that is shared the same
work takes half as long again while a neighbour computes. The exit code is 0 where, over the second half, the
line fitted to each rises by no more than allowed. A SIGTERM or SIGINT ends the run early, with the figures of
the steps made.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from streamcl.checkpoint import BackgroundSaver, Checkpoints
from streamcl.evaluation import Examiner
from streamcl.events import Batch, Event, Guess, Lesson, Pixels, Sample, StreamInfo
from streamcl.gallery import Gallery
from streamcl.metrics import HoldoutHistory, Prequential, Throughput, memory_mb
from streamcl.processor import Pace, StreamProcessor
from streamcl.protocols import Learner, State
from streamcl.shift import build_detector
from streamcl.sinks import JsonlSink
from streams.guarded import Checked, ReadAhead

ALLOWED = {  # how far each fitted line may rise over the second half
    "memory_mb": 2.0,
    "files": 0.0,
    "threads": 0.0,
    "checkpoint_bytes": 2048.0,  # offsets of shifts, a few bytes each, and of held-out figures
    "step_time": 0.03,  # in yardsticks, as a share of the median step's
}
MEASURED = 20
"""Steps from one yardstick to the next."""
CLASSES = tuple(f"class {number}" for number in range(10))
IMAGE = np.zeros((4, 4, 3), np.uint8)
SQUARE = np.ones((160, 160), np.float32)
Picture: TypeAlias = Callable[[int, int], Pixels]
"""What makes the picture of an offset and a label."""


class Endless:
    """`steps` batches of `size` samples; label and picture depend on the offset alone."""

    replayable = True

    def __init__(self, steps: int, size: int = 1, picture: Picture = lambda *_: IMAGE) -> None:
        self.info = StreamInfo("soak", steps * size)
        self._offset, self._end, self._size = 0, steps * size, size
        self._picture = picture

    def __iter__(self) -> Iterator[Event]:
        while self._offset < self._end:
            offset = self._offset
            self._offset += self._size
            yield Batch(offset, tuple(self._sample(number) for number in range(offset, self._offset)))

    def _sample(self, offset: int) -> Sample:
        label = (offset // 1000 + offset) % len(CLASSES)
        return Sample(f"{offset:09d}", self._picture(offset, label), CLASSES[label])

    def state_dict(self) -> State:
        return {"offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._offset = state["offset"]


class Tiny:
    """A learner of ten counts, whose loss rises for a while every 8,000 steps."""

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
        since = self._steps % 8_000
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


def drawn(offset: int, label: int) -> Pixels:
    """uint8 [32, 32, 3]: a colour of the class, with noise of the offset."""
    look = np.random.default_rng(label).uniform(40, 215, 3)
    noise = np.random.default_rng(offset).normal(0, 25, (32, 32, 3))
    return np.clip(look + noise, 0, 255).astype(np.uint8)


def vit(side: int) -> Learner:
    """The default learner on the first 11 blocks of the pretrained ViT-S, at pictures of that side."""
    from streamcl.build import build_compute, build_learner, build_vit  # loads torch
    from streamcl.config import config_from_dict

    name, weights = "vit_small_patch14_dinov2", "fetch:vit-s-focus"
    config = config_from_dict(
        {
            "source": "demo_digits",
            "backbone": {"name": name, "weights": weights, "image_size": side, "depth": 11},
            "device": "cpu",
            "threads": 1,
        }
    )
    compute = build_compute(config)
    return build_learner(config, build_vit(config, compute, print), compute)


def soak(
    steps: int, work: Path, learner: Learner | None = None, source: Endless | None = None
) -> dict[str, list[float]]:
    """Run, and note the figures a hundred times."""
    work.mkdir(parents=True, exist_ok=True)
    vault = Checkpoints(work / "checkpoints", fingerprint={})
    saver, sink = BackgroundSaver(vault), JsonlSink(work)
    stream = ReadAhead(Checked(source or Endless(steps)))
    processor = StreamProcessor(
        stream,
        learner or Tiny(),
        build_detector("relative"),
        scores=Prequential(),
        history=HoldoutHistory(),
        examiner=Examiner(()),
        pace=Clock(),
        sink=sink,
        gallery=Gallery(work / "samples", 2),
        vault=saver,
        commit_every=max(1, (stream.info.length or steps) // 200),
    )
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: processor.stop())
    processor.begin()
    notes: dict[str, list[float]] = {name: [] for name in ("step", *ALLOWED)}
    times: list[float] = []
    yardsticks: list[float] = []
    every, noted = max(1, steps // 100), 0
    before = time.thread_time()
    for _ in processor.run():
        step = processor.progress.step
        if step == noted + len(times):
            continue  # another sample of the same batch
        now = time.thread_time()
        times.append(now - before)
        if len(times) % MEASURED == 0 or len(times) == every:
            yardsticks.append(yardstick())
        if len(times) == every:
            noted = step
            note(notes, step, median(times) / median(yardsticks), vault)
            times.clear()
            yardsticks.clear()
        before = time.thread_time()
    saver.close()
    sink.close()
    stream.close()
    return notes


def yardstick() -> float:
    """Seconds of this thread for work that is always the same: some text, some products."""
    began = time.thread_time()
    text = json.dumps({str(number): number / 7 for number in range(100)})
    square = SQUARE @ SQUARE
    assert text
    assert square.shape == SQUARE.shape
    return time.thread_time() - began


def note(notes: dict[str, list[float]], number: int, step_time: float, vault: Checkpoints) -> None:
    notes["step"].append(number)
    notes["memory_mb"].append(memory_mb())
    notes["files"].append(open_files())
    notes["threads"].append(threading.active_count())
    notes["step_time"].append(step_time)
    notes["checkpoint_bytes"].append(size_of(vault))
    print(json.dumps({name: values[-1] for name, values in notes.items()}), file=sys.stderr, flush=True)


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
    parser.add_argument("--steps", type=int, help="1,000,000 by default, 10,000 with --vit")
    parser.add_argument("--vit", action="store_true", help="the default learner on a ViT-S")
    parser.add_argument("--side", type=int, default=42, help="of the pictures that the ViT takes")
    parser.add_argument("--batch", type=int, default=2, help="pictures a batch, for the ViT")
    parser.add_argument("--work", type=Path, help="where the run goes; a temporary folder by default")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="streamcl-soak-"))
    began = time.monotonic()
    if options.vit:
        steps = options.steps or 10_000
        notes = soak(steps, work, vit(options.side), Endless(steps, options.batch, drawn))
    else:
        notes = soak(options.steps or 1_000_000, work)
    found = rises(notes)
    last = {name: values[-1] for name, values in notes.items()}
    result = {"rise": found, "allowed": ALLOWED, "last": last}
    print(json.dumps(result | {"seconds": round(time.monotonic() - began, 1), "work": str(work)}, indent=2))
    return 0 if all(found[name] <= limit for name, limit in ALLOWED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
