"""F14, F15, F19, F20: numbers that are not finite, storms, sinks that fail, memory that runs out."""

from __future__ import annotations

import math

import pytest
from fault_runs import learned, left, lines, newest_state, streamcl, write_config
from fault_sources import Broken
from loop_runs import ScriptedDetector, build
from pictures import make_batch

from streamcl.errors import NotFinite
from streamcl.shift.detector import build_detector
from streamcl.sinks.best_effort import BestEffortSink
from streamcl.storage.plain_state import state_hash
from streamcl.testing import FakeLearner, ScriptedSource, each_exactly_once, record_id

pytestmark = [pytest.mark.faults, pytest.mark.long]


def run(folder, name="run", *more, code=0, **options):
    done = streamcl("run", "stream.yaml", "--set", f"run_dir={name}", *more, folder=folder, **options)
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    return done


# -- not finite (F14) --------------------------------------------------------------------------------------


def test_for_ever_it_goes_back_and_exits_5(tmp_path):
    write_config(tmp_path, max_skipped=3)
    hook = ("fault_runs:not_finite", {"first": 6, "last": 1000})
    done = run(tmp_path, code=5, hooks=(hook,))
    assert "3 steps in a row were not finite" in done.err
    assert "continues from offset 32" in done.err
    events = lines(tmp_path / "run", "events")
    assert [event["kind"] for event in events].count("skipped") == 3
    assert events[-1] | {"kind": "rollback", "to": 32} == events[-1]
    # Batches 6, 7, 8 were skipped; nothing was committed since the first of them.
    assert newest_state(tmp_path / "run")["progress"]["offset"] == 32
    run(tmp_path, "whole")
    run(tmp_path)  # the cause is gone: from the commit before it, as if it had not been
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_once_it_is_skipped_counted_and_nothing_learned_changes(tmp_path):
    write_config(tmp_path)
    run(tmp_path, hooks=(("fault_runs:not_finite", {"first": 6, "last": 6}),))
    assert newest_state(tmp_path / "run")["guard"] == {"skipped": 1, "skipped_in_a_row": 0}
    losses = [record["loss"] for record in lines(tmp_path / "run", "metrics") if record["kind"] == "step"]
    assert losses[5] is None
    assert all(math.isfinite(loss) for loss in losses if loss is not None)
    assert newest_state(tmp_path / "run")["detector"]["count"] == len(losses) - 1


def test_nothing_is_committed_while_steps_are_not_finite(tmp_path):
    bad = range(24, 48)
    learner = FakeLearner(loss=lambda batch: math.inf if batch.offset in bad else 1.0)
    commits = []

    class Commits:
        def save(self, offset, step, state):
            commits.append(offset)

        def oldest_step(self):
            return None

    source = ScriptedSource([4] * 16)
    list(build(tmp_path, source, learner=learner, checkpoints=Commits(), commit_every=4, max_skipped=7).run())
    assert [offset for offset in commits if 24 < offset <= 48] == []
    assert 52 in commits


def test_a_long_row_of_bad_steps_pushes_no_good_checkpoint_out(tmp_path):
    """Seven bad steps with a commit each would leave no checkpoint from before the first of them."""
    learner = FakeLearner(loss=lambda batch: math.nan if batch.offset >= 24 else 1.0)
    with pytest.raises(NotFinite):
        list(build(tmp_path, ScriptedSource([4] * 20), learner=learner, commit_every=4, max_skipped=7).run())
    state = newest_state(tmp_path)
    assert (state["progress"]["offset"], state["guard"]["skipped"]) == (24, 0)


# -- storms (F15) ------------------------------------------------------------------------------------------

DETECTORS = {
    "relative_rise": {},
    "plateau": {"mean_threshold": 2.6, "variance_threshold": 0.03},
    **{name: {"name": name, "args": {}} for name in ("ADWIN", "PageHinkley", "KSWIN")},
}
SCENES = {
    "a million times larger": lambda batch: 1e6 * (1 + (batch.offset % 28) / 28),
    "constant": lambda _: 1.0,
    "constant zero": lambda _: 0.0,
    "a shift every step": lambda batch: 10.0 ** (batch.offset // 4 % 7),
    "a shift every tenth": lambda batch: 5.0 if batch.offset // 40 % 2 else 0.01,
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_no_storm_of_consolidations(tmp_path, scene, detector):
    steps = 400
    made = build_detector("river" if "name" in DETECTORS[detector] else detector, **DETECTORS[detector])
    learner = FakeLearner(loss=SCENES[scene])
    processor = build(
        tmp_path, ScriptedSource([4] * steps), learner=learner, detector=made, commit_every=None
    )
    list(processor.run())
    found = processor.shift_handler
    assert len(found.shifts) <= steps // 5
    assert len(found.consolidations) <= len(found.shifts) + 1  # at most one a segment
    each_exactly_once(learner.consumed, [record_id(k) for k in range(4 * steps)])


def test_a_real_learner_outlives_a_consolidation_a_step_and_a_single_class(tmp_path):
    write_config(tmp_path, shift={"class": "fault_sources:Always"}, batch=4)
    run(tmp_path)
    state = newest_state(tmp_path / "run")
    assert len(state["shifts"]["consolidations"]) == 24
    once = len(repr(sorted(state["learner"]["adapters"])))
    write_config(tmp_path, "rare.yaml", batch=4)
    streamcl("run", "rare.yaml", folder=tmp_path)
    assert once == len(repr(sorted(newest_state(tmp_path / "runs" / "rare")["learner"]["adapters"])))
    write_config(tmp_path, source={"class": "fault_sources:OneClass"})
    run(tmp_path, "one")
    assert newest_state(tmp_path / "one")["learner"]["classes"] == ["ant"]


# -- sinks (F19) -------------------------------------------------------------------------------------------


def test_a_run_whose_services_are_down_ends_as_one_without_them(tmp_path):
    write_config(tmp_path, learner="ridge")
    run(tmp_path, "alone")
    sinks = [{"class": "fault_sources:Broken"}, {"class": "fault_sources:Sluggish", "args": {"seconds": 0.2}}]
    write_config(tmp_path, learner="ridge", sinks=sinks)
    done = run(tmp_path, "beside")
    assert left(tmp_path / "beside") == left(tmp_path / "alone")
    assert "learning continues" in done.err
    assert done.err.count("learning continues") <= 3  # one a minute for each, and one at the end


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_sink_that_is_down_or_slow_changes_nothing_but_one_warning(tmp_path, caplog, seconds):
    alone = build(tmp_path / "alone", ScriptedSource([4] * 100))
    list(alone.run())
    sink = BestEffortSink(Broken(tmp_path, seconds), "broken", size=20, close_timeout=0.1)
    beside = build(tmp_path / "beside", ScriptedSource([4] * 100), beside=sink)
    list(beside.run())
    sink.close()
    assert (sink.dropped if seconds else sink.failed) > 0  # a sink that is waited for drops nothing
    assert len(caplog.records) == 1  # one a minute
    assert beside.learner.consumed == alone.learner.consumed
    names = ("predictions", "quarantine")
    assert [(tmp_path / "beside" / f"{n}.jsonl").exists() for n in names] == [True, False]


# -- memory (F20) ------------------------------------------------------------------------------------------


class Tight(FakeLearner):
    """Has memory for `room` samples a step."""

    def __init__(self, room, error=MemoryError):
        super().__init__()
        self.room, self.error = room, error

    def learn(self, batch):
        if len(batch) > self.room:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return super().learn(batch)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, type("OutOfMemoryError", (RuntimeError,), {})])
def test_a_batch_that_does_not_fit_is_learned_in_halves(tmp_path, error):
    learner = Tight(3, error)
    processor = build(tmp_path, ScriptedSource([10, 3, 8]), learner=learner, detector=ScriptedDetector())
    predictions = list(processor.run())
    each_exactly_once(learner.consumed, [record_id(k) for k in range(21)])
    assert [p.offset for p in predictions] == list(range(21))
    splits = [event for event in lines(tmp_path, "events") if event["kind"] == "split"]
    assert len(splits) == 3 + 3  # 10, 5, 5 and 8, 4, 4
    assert len(processor.parts.detector.losses) == 3


def test_a_single_sample_that_does_not_fit_is_left_out_and_said(tmp_path):
    learner = Tight(0)
    processor = build(tmp_path, ScriptedSource([2, 2]), learner=learner, detector=ScriptedDetector())
    assert len(list(processor.run())) == 4
    assert learner.consumed == []
    assert [event["kind"] for event in lines(tmp_path, "events")].count("skipped") == 4


def test_other_errors_of_a_learner_are_not_taken_for_it(tmp_path):
    learner = Tight(1)
    learner.error = lambda message: RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        list(build(tmp_path, ScriptedSource([2]), learner=learner).run())


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_runs_out_of_memory_half_way_changes_nothing(tiny_backbone, fp32, monkeypatch, steps):
    """The optimizer has already changed parameters and made moments when it fails."""
    from streamcl.learners.online_lora import OnlineLoRALearner

    learner = OnlineLoRALearner(tiny_backbone, fp32, hard_buffer_size=4)
    for number in range(steps):
        learner.learn(make_batch(number * 4, ["a", "b"] * 2))
    learner.model.grow(make_batch(0, ["a", "b"]).samples)
    before = state_hash(learner.state_dict())
    real = learner.model.optimizer.step

    def half(*args):
        real(*args)
        raise MemoryError("in the middle")

    monkeypatch.setattr(learner.model.optimizer, "step", half)
    with pytest.raises(MemoryError):
        learner.learn(make_batch(40, ["a", "b"] * 2))
    assert state_hash(learner.state_dict()) == before


def test_a_real_run_short_of_memory_ends_with_every_sample_learned(tmp_path):
    write_config(tmp_path)
    run(tmp_path, hooks=(("fault_runs:out_of_memory", {"at": [3, 4, 9], "largest": 4}),))
    kinds = [event["kind"] for event in lines(tmp_path / "run", "events")]
    assert kinds.count("split") == 2  # the 4th try is a half of the third batch, which fits
    assert [record["offset"] for record in lines(tmp_path / "run", "predictions")] == list(range(96))
    assert learned(tmp_path / "run")
