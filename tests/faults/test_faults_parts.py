"""F14 and F20 within one batch: which of its samples were learned is known for each of them."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forgetting_fakes import ForgettingLearner, Opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_runs import ScriptedDetector, build, lines
from memory_faults import BLOCKS, baseline, hybrid, online_lora
from pictures import picture
from tiny_learners import cohorts, mixed

from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample, StepResult
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.baselines.replay import ExperienceReplay
from streamcl.learners.block_features import concat_width
from streamcl.learners.ridge import RidgeLearner
from streamcl.testing import ScriptedSource, record_id

pytestmark = pytest.mark.faults


class Faults:
    """room: samples that memory is enough for. unfit: samples that never fit. spoilt: not finite."""

    def __init__(self, room=1000, unfit=(), spoilt=()):
        self.room, self.unfit, self.spoilt = room, frozenset(unfit), frozenset(spoilt)
        self.learning = False

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


class FaultyReader:
    """Gives rows that are not finite while a learner learns."""

    def __init__(self, real, faults):
        self.real, self.faults = real, faults

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __call__(self, samples):
        return self.spoilt(self.real(samples), samples)

    def read(self, samples, cut):
        features, views = self.real.read(samples, cut)
        return self.spoilt(features, samples), views

    def spoilt(self, features, samples):
        if self.faults.learning:
            features[self.faults.spoils(samples)] = torch.nan
        return features


def with_faults(learner, faults):
    """The learner with faults while it learns."""
    real = learner.learn

    def learn(batch):
        faults.check(batch)
        faults.learning = True
        try:
            return real(batch)
        finally:
            faults.learning = False

    learner.learn = learn
    return learner


def faulty_ridge(faults, backbone, compute):
    head = RidgeHead(concat_width(backbone, BLOCKS), trace_ridge=1.0)
    learner = RidgeLearner(backbone, compute, head, blocks=BLOCKS)
    learner.reader = FaultyReader(learner.reader, faults)
    return with_faults(learner, faults)


def faulty_hybrid(faults, backbone, compute):
    learner = hybrid(100)(backbone, compute)
    learner.exact.reader = FaultyReader(learner.exact.reader, faults)
    return with_faults(learner, faults)


class Onlooker(ScriptedDetector):
    """Looks at features."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def look(self, features):
        self.seen += features.tolist()

    def drop_features(self):
        self.seen = []


PRIVACY = ("core", "user", "core")


def records(offset, labels):
    """A batch; a record that is None is rejected, and one whose label is "" has none."""
    numbers = range(offset, offset + len(labels))
    samples = [
        Sample(record_id(k), picture(label, k), label or None, f"subject-{k % 3}", privacy=PRIVACY[k % 3])
        for k, label in zip(numbers, labels, strict=True)
        if label is not None
    ]
    rejected = [
        RejectedRecord(k, record_id(k), "scripted")
        for k, label in zip(numbers, labels, strict=True)
        if label is None
    ]
    return Batch(offset, tuple(samples), tuple(rejected))


def receipt(folder, name):
    return json.loads((folder / "receipts" / f"{name}.json").read_text())


# -- the four faults ---------------------------------------------------------------------------------------


def test_the_half_that_was_learned_can_be_forgotten(tmp_path):
    learner = FaultyLearner(Faults(room=2, spoilt=[record_id(3)]))
    request = ForgetRequest(ids=[record_id(0)], offset=4, id="r1", guarantee="exact")
    with Opened(tmp_path, ScriptedSource([4, 2]), learner=learner, schedule=[request]) as run:
        run.run()
    assert receipt(tmp_path, "r1")["method"] == "closed_form"
    assert learner.consumed == [record_id(k) for k in (1, 4, 5)]


def test_a_sample_that_was_left_out_is_never_subtracted(tmp_path, tiny_backbone, fp32):
    learner = faulty_ridge(Faults(unfit=[record_id(1)]), tiny_backbone, fp32)
    request = ForgetRequest(ids=[record_id(1)], offset=8, id="r1", guarantee="exact")
    with Opened(tmp_path, ScriptedSource([8]), learner=learner, schedule=[request]) as run:
        run.run()
    assert receipt(tmp_path, "r1")["method"] == "no_op"
    assert learner.head.counts == (4, 3)


def test_halves_keep_the_offsets_of_their_samples(tmp_path, tiny_backbone, fp32):
    batch = records(0, [None, None, "a", "b", "a", "b", "a", "b"])
    learner = faulty_hybrid(Faults(room=3), tiny_backbone, fp32)
    list(build(tmp_path, ScriptedSource([batch]), learner=learner).run())
    assert learner.adapted_until == 8
    learner = faulty_hybrid(Faults(room=3, unfit=[record_id(7)]), tiny_backbone, fp32)
    list(build(tmp_path / "first", ScriptedSource([batch]), learner=learner).run())
    assert learner.adapted_until == 7


def test_the_detector_sees_the_features_of_both_halves(tmp_path, tiny_backbone, fp32):
    seen = {}
    for room in (2, 4):
        learner, detector = faulty_ridge(Faults(room=room), tiny_backbone, fp32), Onlooker()
        source = ScriptedSource([records(0, "abab")])
        list(build(tmp_path / str(room), source, learner=learner, detector=detector).run())
        seen[room] = detector.seen
    assert len(seen[4]) == 4
    assert seen[2] == seen[4]


# -- what is said of it ------------------------------------------------------------------------------------


def test_a_batch_of_which_half_was_learned_is_no_batch_lost(tmp_path):
    """It is counted and said; its loss reaches the detector, and the run goes on however often that is."""
    learner = FaultyLearner(Faults(room=2, spoilt=[record_id(k) for k in range(3, 48, 4)]))
    processor = build(tmp_path, ScriptedSource([4] * 12), learner=learner, detector=ScriptedDetector())
    list(processor.run())
    assert (processor.guard.skipped, processor.guard.skipped_in_a_row) == (12, 0)
    assert processor.parts.detector.losses == [1.0] * 12
    reasons = [event["reason"] for event in lines(tmp_path, "events") if event["kind"] == "skipped"]
    assert reasons == ["losses or gradients were not finite; 2 of 4 samples were learned, 2 were not"] * 12


def test_a_sample_without_memory_is_not_counted_as_not_finite(tmp_path):
    learner = FaultyLearner(Faults(unfit=[record_id(k) for k in range(48)]))
    processor = build(tmp_path, ScriptedSource([4] * 12), learner=learner)
    list(processor.run())
    assert processor.guard.skipped == 0


def test_a_learner_cannot_have_learned_what_has_no_label(tmp_path):
    learner = FaultyLearner(Faults())
    learner.learn = lambda batch: StepResult(learner.predict(batch.samples), (1.0,), learned=batch.offsets)
    with pytest.raises(ValueError, match=r"1 offsets, 2 the first of them, at which the batch \[0, 4\)"):
        list(build(tmp_path, ScriptedSource([records(0, ["a", None, "", "b"])]), learner=learner).run())


def test_halves_are_cut_at_an_offset():
    batch = records(8, [None, "a", None, "", "b", None, None, "c", None])
    first, second = batch.halves()
    assert (first.offset, first.end, second.offset, second.end) == (8, 12, 12, 17)
    assert first.offsets + second.offsets == batch.offsets
    assert first.samples + second.samples == batch.samples
    assert first.rejected + second.rejected == batch.rejected
    assert (first.labelled_offsets, second.labelled_offsets) == ((9,), (12, 15))


# -- whatever the faults -----------------------------------------------------------------------------------

EVERYTHING = ForgetRequest(id="all", offsets=(0, 2**62))
PLAIN = settings(derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
MANY = pytest.mark.parametrize("examples", [40, pytest.param(100, marks=pytest.mark.slow)])
FEW = pytest.mark.parametrize("examples", [10, pytest.param(25, marks=pytest.mark.slow)])


class Recalled(ScriptedSource):
    """Fetches the samples of its batches."""

    def __init__(self, batches):
        super().__init__(batches)
        self.samples = {sample.id: sample for batch in batches for sample in batch.samples}

    def fetch(self, ids):
        yield from (self.samples[name] for name in ids)


@dataclass(frozen=True)
class Case:
    """Labels of each batch's records ("" none, None rejected); which of them meet faults; what is asked."""

    labels: list[list[str | None]]
    room: int
    unfit: set[str]
    spoilt: set[str]
    ids: list[list[str]]

    @property
    def faults(self):
        return Faults(self.room, self.unfit, self.spoilt)

    @property
    def batches(self):
        starts = itertools.accumulate(map(len, self.labels), initial=0)
        return [records(start, each) for start, each in zip(starts, self.labels, strict=False)]

    @property
    def asked(self):
        """By the name of a request: the offset after a batch, and the ids that are to be forgotten there."""
        ends = (batch.end for batch in self.batches)
        return {f"r{end}": (end, ids) for end, ids in zip(ends, self.ids, strict=True) if ids}

    @property
    def schedule(self):
        return [
            ForgetRequest(ids=ids, offset=at, id=r, guarantee="exact") for r, (at, ids) in self.asked.items()
        ]


@st.composite
def cases(draw):
    labels = st.sampled_from(["a", "b", "c", "a", "b", "c", "", None])
    stream = draw(st.lists(st.lists(labels, min_size=1, max_size=8), min_size=1, max_size=4))
    ids = st.integers(0, sum(map(len, stream)) - 1).map(record_id)
    some = st.sets(ids, max_size=3)
    asked = [draw(st.lists(ids, unique=True, max_size=3)) for _ in stream]
    return Case(stream, draw(st.integers(1, 8)), draw(some), draw(some), asked)


def traces(lineage):
    """Those of all learned samples, in the order of the stream."""
    return [trace for chunk in lineage.select(EVERYTHING).chunks(learned=True) for trace in chunk]


def stages(processor):
    """Carry out event after event, and the requests between them; stops after each."""
    for event in processor.source:
        processor.forget()
        yield
        processor.process(event)
        yield
    processor.forget()
    yield


@pytest.mark.long
@MANY
def test_the_lineage_and_a_learner_agree_after_every_event(examples):
    @settings(PLAIN, max_examples=examples)
    @given(case=cases())
    def holds(case):
        learner = FaultyLearner(case.faults)
        ever, folder = set(), Path(tempfile.mkdtemp())
        with Opened(folder, Recalled(case.batches), learner=learner, schedule=case.schedule) as run:
            for _ in stages(run.processor):
                assert [trace.id for trace in traces(run.lineage)] == learner.consumed
                ever |= {(name, run.processor.progress.offset) for name in learner.consumed}
        for name, (at, ids) in case.asked.items():
            held = [each for each in ids if (each, at) in ever]
            found = receipt(folder, name)
            assert (found["outcome"], found["guarantee"]) == ("done", "exact")
            assert found["scope"]["learned"] == len(held)
            assert found["method"] == ("closed_form" if held else "no_op")
        shutil.rmtree(folder)

    holds()


def sums(learner, names):
    """Of a ridge learner, with the columns of these names."""
    known = learner.head.statistics
    own = {name: column for column, name in enumerate(learner.classes)}
    found = known.select([own.get(name, -1) for name in names])
    return found.counts.tolist(), found.gram.full(), found.Q


def check_sums(learner, fresh, samples):
    """A ridge learner is one that has learned these samples and no others."""
    if samples:
        fresh.learn(Batch(0, tuple(samples)))
    found, expected = sums(learner, "abc"), sums(fresh, "abc")
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=1e-6 * (1 + len(samples)))


@pytest.mark.long
@FEW
def test_the_sums_of_a_ridge_and_those_kept_are_of_the_learned_samples(tiny_backbone, fp32, examples):
    @settings(PLAIN, max_examples=examples)
    @given(case=cases())
    def holds(case):
        learner, source = faulty_ridge(case.faults, tiny_backbone, fp32), Recalled(case.batches)
        folder = Path(tempfile.mkdtemp())
        with Opened(folder, source, learner=learner, schedule=case.schedule, by="subject") as run:
            for _ in stages(run.processor):
                learned = [source.samples[trace.id] for trace in traces(run.lineage)]
                check_sums(learner, faulty_ridge(Faults(), tiny_backbone, fp32), learned)
                assert run.kept.select(run.lineage.select(EVERYTHING).cohorts("subject")).is_complete(1)
        shutil.rmtree(folder)

    holds()


def in_hybrid(learner, found, samples):
    counts = learner.adapted.head.counts
    assert sum(learner.exact.head.counts) == sum(counts) == len(found)
    early = [trace for trace in found if trace.offset < learner.adapted_until]
    assert len(early) == (
        sum(learner.adapted.state_dict()["stale"]) if learner.adapted.frozen else len(found)
    )


def in_mixed(learner, found, samples):
    assert sum(learner.core.exact.head.counts) == sum(not trace.private for trace in found)
    assert learner.users.counts.sum() == len(found)
    subjects = {sample.subject for sample in samples.values()}
    for subject in subjects:
        own = [trace for trace in found if trace.private and samples[trace.id].subject == subject]
        assert learner.user_sample_count(subject) == len(own)


def in_cohorts(learner, found, samples):
    offsets = Counter(str(trace.offset // 3) for trace in found)
    assert {name: cohort.learned for name, cohort in learner.cohorts.items()} == offsets


def in_buffer(learner, found, samples):
    held = {sample.id for sample in learner.buffer.samples}
    learned = [trace.id for trace in found]
    assert held <= set(learned)
    assert len(held) == min(len(learned), 3)
    assert learner.buffer.state_dict()["offered"] == len(learned)


def make_cohorts(faults, backbone, compute):
    learner = cohorts(backbone, compute, by="offset_range", stretch=3, adapt=4)
    learner.reader = FaultyReader(learner.reader, faults)
    return learner


def make_mixed(faults, backbone, compute):
    learner = mixed(backbone, compute, adapt=8)
    learner.core.exact.reader = FaultyReader(learner.core.exact.reader, faults)
    return learner


def by_gradient(make):
    def made(faults, backbone, compute):
        learner = make(backbone, compute)
        real = learner.model.features

        def features(samples):
            found = real(samples)
            rows = torch.zeros(len(found), 1)
            rows[faults.spoils(samples)] = torch.nan
            return found + rows if faults.learning else found

        learner.model.features = features
        return learner

    return made


REAL = {
    "hybrid": (faulty_hybrid, in_hybrid),
    "mixed_privacy": (make_mixed, in_mixed),
    "cohort_adapters": (make_cohorts, in_cohorts),
    "online_lora": (by_gradient(online_lora), in_buffer),
    "er": (by_gradient(baseline(ExperienceReplay, replay_size=3)), in_buffer),
}


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
@FEW
def test_what_a_learner_keeps_and_counts_is_what_it_learned(tiny_backbone, fp32, name, examples):
    @settings(PLAIN, max_examples=examples)
    @given(case=cases())
    def holds(case):
        (make, check), faults, source = REAL[name], case.faults, Recalled(case.batches)
        learner = with_faults(make(faults, tiny_backbone, fp32), faults)
        folder = Path(tempfile.mkdtemp())
        with Opened(folder, source, learner=learner) as run:
            for _ in stages(run.processor):
                check(learner, traces(run.lineage), source.samples)
        shutil.rmtree(folder)

    holds()
