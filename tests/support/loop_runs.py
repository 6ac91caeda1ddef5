"""A stream processor made of shipped fakes, with a detector that fires where a script says."""

from __future__ import annotations

import json
import math
from pathlib import Path

from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import RunMetrics
from streamcl.sinks.fanout import Fanout
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.thumbnails import Thumbnails
from streamcl.testing import (
    FakeLearner,
)

OPENED = []


class Clock:
    def __init__(self):
        self.throughput = Throughput(clock=lambda: 0.0)
        self.state_dict = self.throughput.state_dict
        self.load_state_dict = self.throughput.load_state_dict

    def read(self, images):
        return RunMetrics(None, 0.0, 0.0)


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
    folder: Path, source, *, learner=None, detector=None, holdout=(), commit_every=16, beside=None, **options
):
    vault = Checkpoints(folder / "checkpoints", fingerprint={})
    folder.mkdir(exist_ok=True)
    OPENED.append(JsonlSink(folder))
    processor = StreamProcessor(
        source,
        learner or FakeLearner(),
        detector or ScriptedDetector(shifts={4, 9}, plateaus={6}),
        scores=Prequential(),
        history=HoldoutHistory(),
        examiner=HoldoutEvaluator(holdout, every=20),
        pace=Clock(),
        sink=OPENED[-1] if beside is None else Fanout({"jsonl": OPENED[-1], "beside": beside}),
        gallery=Thumbnails(folder / "samples", 2),
        vault=vault,
        commit_every=commit_every,
        **options,
    )
    found = vault.latest()
    if found is None:
        processor.begin()
    else:
        processor.restore(found.state)
    return processor


def lines(folder: Path, topic: str):
    """The records of a topic, but for what only the clock decides."""
    records = [json.loads(line) for line in (folder / f"{topic}.jsonl").read_text().splitlines()]
    return [record for record in records if record.get("kind") != "checkpoint"]
