"""A loop over a fake learner with all its parts, in a folder: made anew or where its last commit left it."""

import json
import math
import time
import weakref
from pathlib import Path

from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy
from streamcl.sinks.fanout import Fanout
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.thumbnails import Thumbnails
from streamcl.testing import FakeLearner


class StoppedClock(Throughput):
    """Measures no time."""

    def __init__(self):
        super().__init__(clock=lambda: 0.0)

    def read(self, images):
        return {"images_per_s": None, "seconds": 0.0, "memory_mb": 0.0}


class ScriptedDetector:
    """Shifts and plateaus at the given updates."""

    def __init__(self, shifts=(), plateaus=()):
        self.shifts, self.plateaus, self.losses = set(shifts), set(plateaus), []

    def update(self, loss):
        assert math.isfinite(loss)
        self.losses.append(loss)

    @property
    def shift(self):
        return "scripted" if len(self.losses) in self.shifts else None

    @property
    def plateau(self):
        return "scripted" if len(self.losses) in self.plateaus else None

    def state_dict(self):
        return {"losses": list(self.losses)}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])


def build(
    folder: Path,
    source,
    *,
    learner=None,
    detector=None,
    holdout=(),
    checkpoints=None,
    beside=None,
    clock=time.monotonic,
    request_intake=None,
    waiting=None,
    corrections=None,
    **policy,
):
    """A processor whose sink is closed once nobody holds the processor any more."""
    folder.mkdir(exist_ok=True)
    sink = JsonlSink(folder)
    found = Checkpoints(folder / "checkpoints", fingerprint={})
    processor = StreamProcessor(
        source,
        learner or FakeLearner(),
        LoopParts(
            detector=detector or ScriptedDetector(shifts={4, 9}, plateaus={6}),
            scores=Prequential(),
            history=HoldoutHistory(),
            evaluator=HoldoutEvaluator(holdout, every_samples=20),
            meter=StoppedClock(),
            sink=sink if beside is None else Fanout({"jsonl": sink, "beside": beside}),
            thumbnails=Thumbnails(folder / "samples", 2),
            checkpoints=checkpoints or found,
            clock=clock,
            request_intake=request_intake,
            waiting=waiting,
            corrections=corrections,
        ),
        LoopPolicy(**{"commit_every": 16, **policy}),
    )
    weakref.finalize(processor, sink.close)
    newest = found.latest()
    if newest is None:
        processor.begin()
    else:
        processor.restore(newest.state)
    return processor


def lines(folder: Path, topic: str):
    """The records of a topic, but for what only the clock decides."""
    records = [json.loads(line) for line in (folder / f"{topic}.jsonl").read_text().splitlines()]
    return [record for record in records if record.get("kind") != "checkpoint"]
