"""Runs a model for a very long time and shows that nothing grows but the logs.

    python benchmarks/soak.py [--steps 1000000] [--work FOLDER]
    python benchmarks/soak.py --vit [--steps 10000] [--side 42] [--batch 2] [--work FOLDER]
    python benchmarks/soak.py [--vit] --compare --work FOLDER

The real loop, detector, metrics, sinks and checkpoints; a learner and a source that cost nothing, or the
default learner on the ViT-S of the demonstration. A hundred times on the way memory, open files, threads,
the size of a checkpoint and the processor time of a step are noted, and printed to stderr. The exit code is 0
where, over the second half, the line fitted to each but the last rises by no more than allowed, and where a
step costs no more at the end than after a tenth of the way.
That is measured side by side, because on a shared processor the same work takes half as long again while a
neighbour computes: the state of then and that of the end go on in one process, step by step in turns, each
from where it was; reported is the median of the ratios of short stretches. `--compare` does this alone, with
the states that an earlier run left in FOLDER. A SIGTERM or SIGINT ends the run early, with the figures of the
steps made.
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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput, memory_mb
from streamcl.events import Batch, Event, Pixels, Prediction, Sample, StepResult, StreamInfo
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy
from streamcl.protocols import Learner, State
from streamcl.shift.detector import build_detector
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.thumbnails import Thumbnails
from streams.offsets import OffsetChecked
from streams.prefetch import Prefetcher

ALLOWED = {  # how far each fitted line may rise over the second half
    "memory_mb": 2.0,
    "files": 0.0,
    "threads": 0.0,
    "checkpoint_bytes": 2048.0,  # offsets of shifts, a few bytes each, and of held-out figures
    "step_time": 0.03,  # of the end's over that of a tenth of the way
}
FITTED = tuple(name for name in ALLOWED if name != "step_time")
STRETCHES = 25
"""Number of stretches that are compared."""
CLASSES = tuple(f"class {number}" for number in range(10))
IMAGE = np.zeros((4, 4, 3), np.uint8)
EARLY, LATE = "early", "checkpoints"
"""Folders of the states after a tenth of the way, and at the end."""
Picture: TypeAlias = Callable[[int, int], Pixels]
"""Makes the picture of an offset and a label."""


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

    def predict(self, samples: Any) -> tuple[Prediction, ...]:
        return (Prediction(next(iter(self._counts), None), 0.5),) * len(samples)

    def learn(self, batch: Batch) -> StepResult:
        guesses = self.predict(batch.samples)
        for sample in batch.samples:
            self._counts[str(sample.label)] = self._counts.get(str(sample.label), 0) + 1
        self._steps += 1
        since = self._steps % 8_000
        loss = 3.0 * 0.5 ** (since / 200) + 0.1 + 0.01 * (self._steps * 7919 % 101) / 101
        return StepResult(guesses, (loss,), learned=batch.labelled_offsets)

    def consolidate(self) -> Mapping[str, Any]:
        return {}

    def state_dict(self) -> State:
        return {"counts": dict(self._counts), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts, self._steps = dict(state["counts"]), state["steps"]


def drawn(offset: int, label: int) -> Pixels:
    """uint8 [32, 32, 3]: a colour of the class, with noise of the offset."""
    look = np.random.default_rng(label).uniform(40, 215, 3)
    noise = np.random.default_rng(offset).normal(0, 25, (32, 32, 3))
    return np.clip(look + noise, 0, 255).astype(np.uint8)


def vit(side: int) -> Learner:
    """The default learner on the first 11 blocks of the pretrained ViT-S, at pictures of that side."""
    from streamcl.config.load import config_from_dict
    from streamcl.factory.backbone import (
        build_compute,
        build_vit,  # loads torch
    )
    from streamcl.factory.parts import build_learner

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
    return build_learner(config, build_vit(config, compute), compute)


@dataclass(frozen=True, slots=True)
class Setting:
    """A learner and a source of so many steps, both made anew; samples between commits."""

    learner: Callable[[], Learner]
    source: Callable[[int], Endless]
    commit_every: int

    @contextmanager
    def processor(self, work: Path, steps: int, vault: BackgroundSaver | None) -> Iterator[StreamProcessor]:
        """A loop over so many steps; its sink and its source are closed at the end."""
        with (
            closing(JsonlSink(work)) as sink,
            closing(Prefetcher(OffsetChecked(self.source(steps)))) as stream,
        ):
            yield StreamProcessor(
                stream,
                self.learner(),
                LoopParts(
                    detector=build_detector("relative_rise"),
                    scores=Prequential(),
                    history=HoldoutHistory(),
                    evaluator=HoldoutEvaluator(()),
                    meter=Throughput(),
                    sink=sink,
                    thumbnails=Thumbnails(work / "samples", 2),
                    checkpoints=vault,
                ),
                LoopPolicy(commit_every=self.commit_every),
            )


def tiny(steps: int) -> Setting:
    """A learner and a source that cost nothing."""
    return Setting(Tiny, Endless, max(1, steps // 200))


def soak(steps: int, work: Path, setting: Setting) -> dict[str, list[float]]:
    """Run, note the figures a hundred times, and leave the states that `compared` goes on from."""
    work.mkdir(parents=True, exist_ok=True)
    notes: dict[str, list[float]] = {name: [] for name in ("step", *ALLOWED)}
    times: list[float] = []
    every, noted = max(1, steps // 100), 0
    vault = Checkpoints(work / LATE, fingerprint={})
    with (
        closing(BackgroundSaver(vault)) as saver,
        setting.processor(work, steps, saver) as processor,
    ):
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, lambda *_: processor.stop())
        processor.begin()
        before = time.thread_time()
        for _ in processor.run():
            step = processor.progress.step
            if step == noted + len(times):
                continue  # another sample of the same batch
            times.append(time.thread_time() - before)
            if len(times) == every:
                noted = step
                note(notes, step, median(times), vault)
                times.clear()
            if step == max(1, steps // 10):
                early = Checkpoints(work / EARLY, fingerprint={}, keep=1)
                early.save(processor.progress.offset, step, processor.state_dict())
            before = time.thread_time()
    return notes


def compared(work: Path, setting: Setting, stretches: int = STRETCHES, stretch: int = 20) -> list[float]:
    """The time of a step at the end over that of one after a tenth of the way, of each stretch."""
    with ExitStack() as stack:
        sides = [
            stack.enter_context(resumed(work, name, setting, stretches * stretch)) for name in (EARLY, LATE)
        ]
        ratios = []
        for _ in range(stretches):
            pairs = [[next(side) for side in sides] for _ in range(stretch)]
            early, late = (median(side) for side in zip(*pairs, strict=True))
            ratios.append(late / early)
        return ratios


@contextmanager
def resumed(work: Path, name: str, setting: Setting, more: int) -> Iterator[Iterator[float]]:
    """Processor seconds of one step after the other, of a run that goes on from a state that was left."""
    found = Checkpoints(work / name, fingerprint={}).latest()
    if found is None:
        raise SystemExit(f"{work} has no state to go on from: run it to its end first")
    with (
        TemporaryDirectory() as folder,
        setting.processor(Path(folder), found.step + more, None) as processor,
    ):
        processor.restore({**found.state, "sinks": {}})

        def steps() -> Iterator[float]:
            for event in processor.source:
                before = time.thread_time()
                processor.process(event)
                yield time.thread_time() - before

        yield steps()


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
    """Return by how much a line fitted to the second half of each figure but the step's time rises there.

    By Theil and Sen's median of slopes, which a few odd figures do not move.
    """
    half = len(notes["step"]) // 2
    steps = notes["step"][half:]
    found = {}
    for name in FITTED:
        values = notes[name][half:]
        pairs = [(i, j) for i in range(len(steps)) for j in range(i)]
        slopes = [(values[i] - values[j]) / (steps[i] - steps[j]) for i, j in pairs]
        found[name] = median(slopes) * (steps[-1] - steps[0])
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
    parser.add_argument("--compare", action="store_true", help="only compare steps, of the run in --work")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="streamcl-soak-"))
    began = time.monotonic()
    steps = options.steps or (10_000 if options.vit else 1_000_000)
    setting = tiny(steps)
    if options.vit:
        setting = Setting(
            lambda: vit(options.side),
            lambda count: Endless(count, options.batch, drawn),
            max(1, steps * options.batch // 200),
        )
    found: dict[str, float] = {}
    last: dict[str, float] = {}
    if not options.compare:
        notes = soak(steps, work, setting)
        found, last = rises(notes), {name: values[-1] for name, values in notes.items()}
    ratios = compared(work, setting, stretch=20 if options.vit else 200)
    found["step_time"] = median(ratios) - 1
    lower, _, upper = quantiles(ratios, n=4)
    result = {"rise": found, "allowed": ALLOWED, "last": last, "step_time_quartiles": [lower - 1, upper - 1]}
    print(json.dumps(result | {"seconds": round(time.monotonic() - began, 1), "work": str(work)}, indent=2))
    return 0 if all(rise <= ALLOWED[name] for name, rise in found.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
