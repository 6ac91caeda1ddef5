"""F14 and F20 within one batch: which of its samples were learned is known for each of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pictures import picture
from forgetting_fakes import ForgettingLearner, Opened
from streamcl.forgetting.requests import build_request
from streamcl.learners.block_features import concat_width
from test_faults_whole import BLOCKS, hybrid
from test_processor import ScriptedDetector, build

from streamcl.events import Batch, RejectedRecord, Sample
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.hybrid import RidgeLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.testing import ScriptedSource, record_id

pytestmark = pytest.mark.faults


class Faults:
    """room: samples that memory is enough for. unfit: samples that never fit. spoilt: not finite."""

    def __init__(self, room=1000, unfit=(), spoilt=()):
        self.room, self.unfit, self.spoilt = room, frozenset(unfit), frozenset(spoilt)

    def check(self, batch):
        if len(batch) > self.room or self.unfit & {sample.id for sample in batch.samples}:
            raise MemoryError

    def spoils(self, samples):
        return [row for row, sample in enumerate(samples) if sample.id in self.spoilt]


class FaultyLearner(ForgettingLearner):
    """It can read off which ids are in it."""

    def __init__(self, faults):
        super().__init__(loss=lambda batch: math.nan if faults.spoils(batch.labelled) else 1.0)
        self.faults = faults

    def learn(self, batch):
        self.faults.check(batch)
        return super().learn(batch)


class FaultyRidge(RidgeLearner):
    """The real one, with faults while it learns."""

    def __init__(self, faults, backbone, compute):
        head = RidgeHead(concat_width(backbone, BLOCKS), relative_lambda=1.0)
        super().__init__(backbone, compute, head, blocks=BLOCKS)
        self.faults, self.learning = faults, False

    def learn(self, batch):
        self.faults.check(batch)
        self.learning = True
        try:
            return super().learn(batch)
        finally:
            self.learning = False

    def features(self, samples):
        features = super().features(samples)
        if self.learning:
            features[self.faults.spoils(samples)] = torch.nan
        return features


class FaultyHybrid(RidgeLoRALearner):
    """The real one, short of memory."""

    def __init__(self, faults, backbone, compute, adapt):
        real = hybrid(adapt)(backbone, compute)
        super().__init__(real.exact, real.adapted)
        self.faults = faults

    def learn(self, batch):
        self.faults.check(batch)
        return super().learn(batch)


class Onlooker(ScriptedDetector):
    """Looks at features."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def look(self, features):
        self.seen += features.tolist()

    def drop_features(self):
        self.seen = []


def records(offset, labels):
    """A batch; a record that is None is refused, and one whose label is "" has none."""
    numbers = range(offset, offset + len(labels))
    samples = [
        Sample(record_id(k), picture(label, k), label or None, subject=f"subject-{k % 3}")
        for k, label in zip(numbers, labels, strict=True)
        if label is not None
    ]
    refused = [
        RejectedRecord(k, record_id(k), "scripted")
        for k, label in zip(numbers, labels, strict=True)
        if label is None
    ]
    return Batch(offset, tuple(samples), tuple(refused))


def receipt(folder, name):
    return json.loads((folder / "receipts" / f"{name}.json").read_text())


# -- the four faults ---------------------------------------------------------------------------------------


def test_the_half_that_was_learned_can_be_forgotten(tmp_path):
    learner = FaultyLearner(Faults(room=2, spoilt=[record_id(3)]))
    request = build_request(ids=[record_id(0)], offset=4, id="r1", guarantee="exact")
    with Opened(tmp_path, ScriptedSource([4, 2]), learner=learner, schedule=[request]) as run:
        run.run()
    assert receipt(tmp_path, "r1")["method"] == "closed_form"
    assert learner.consumed == [record_id(k) for k in (1, 4, 5)]


def test_a_sample_that_was_left_out_is_never_subtracted(tmp_path, tiny_backbone, fp32):
    learner = FaultyRidge(Faults(unfit=[record_id(1)]), tiny_backbone, fp32)
    request = build_request(ids=[record_id(1)], offset=8, id="r1", guarantee="exact")
    with Opened(tmp_path, ScriptedSource([8]), learner=learner, schedule=[request]) as run:
        run.run()
    assert receipt(tmp_path, "r1")["method"] == "nothing"
    assert learner.head.counts == (4, 3)


def test_halves_keep_the_offsets_of_their_samples(tmp_path, tiny_backbone, fp32):
    batch = records(0, [None, None, "a", "b", "a", "b", "a", "b"])
    learner = FaultyHybrid(Faults(room=3), tiny_backbone, fp32, adapt=100)
    list(build(tmp_path, ScriptedSource([batch]), learner=learner).run())
    assert learner.adapted_until == 8
    learner = FaultyHybrid(Faults(room=3, unfit=[record_id(7)]), tiny_backbone, fp32, adapt=100)
    list(build(tmp_path / "first", ScriptedSource([batch]), learner=learner).run())
    assert learner.adapted_until == 7


def test_the_detector_sees_the_features_of_both_halves(tmp_path, tiny_backbone, fp32):
    seen = {}
    for room in (2, 4):
        learner, detector = FaultyRidge(Faults(room=room), tiny_backbone, fp32), Onlooker()
        source = ScriptedSource([records(0, "abab")])
        list(build(tmp_path / str(room), source, learner=learner, detector=detector).run())
        seen[room] = detector.seen
    assert len(seen[4]) == 4
    assert seen[2] == seen[4]
