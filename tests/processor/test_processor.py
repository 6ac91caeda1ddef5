"""The loop: what it does with each event, and that a process that dies loses and doubles nothing."""

import math
import random
import signal

import pytest
from loop_runs import ScriptedDetector, build, lines

from streamcl.errors import ForgettingError, NotFinite, RefusedRequest
from streamcl.events import Batch, ForgetRequest, HoldoutPart
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.plain_state import state_hash
from streamcl.testing import (
    Bad,
    Crash,
    FakeLearner,
    ScriptedSource,
    each_exactly_once,
    in_child,
    record_id,
    until_done,
)


def decided(processor):
    """The state without what the clock and file lengths decide."""
    return state_hash(
        {name: part for name, part in processor.state_dict().items() if name not in {"sinks", "meter"}}
    )


def test_a_batch_is_predicted_before_it_is_learned(tmp_path):
    processor = build(tmp_path, ScriptedSource([["a", "a"], ["b"]]))
    predictions = list(processor.run())
    assert [p.predicted for p in predictions] == [None, None, "a"]
    assert [p.label for p in predictions] == ["a", "a", "b"]
    assert [p.offset for p in predictions] == [0, 1, 2]
    assert [line["id"] for line in lines(tmp_path, "predictions")] == [p.id for p in predictions]


def test_shifts_and_plateaus_are_acted_on_and_logged(tmp_path):
    learner = FakeLearner()
    processor = build(tmp_path, ScriptedSource([4] * 10), learner=learner)
    list(processor.run())
    assert processor.shift_handler.shifts == [16, 36]
    assert processor.shift_handler.consolidations == [24]
    assert learner.consolidated == [24]
    kinds = [event["kind"] for event in lines(tmp_path, "events")]
    assert kinds == ["start", "new_class", "shift", "consolidation", "shift", "end"]
    assert all(event["reason"] for event in lines(tmp_path, "events"))


def test_refused_records_keep_their_offsets_and_go_to_quarantine(tmp_path):
    processor = build(tmp_path, ScriptedSource([4, Bad(2, "torn"), 4]))
    offsets = [p.offset for p in processor.run()]
    assert offsets == [0, 1, 2, 3, 6, 7, 8, 9]
    assert [line["offset"] for line in lines(tmp_path, "quarantine")] == [4, 5]
    assert processor.quarantine.quarantined == 2


def test_a_request_of_the_stream_needs_a_run_that_takes_it_in(tmp_path):
    processor = build(tmp_path, ScriptedSource([4, ForgetRequest(label="a", id="r1"), 4]))
    with pytest.raises(ForgettingError, match="'r1': this run accepts no requests from its source"):
        list(processor.run())


class Refusing:
    """Takes no request in."""

    def submit_from_stream(self, request):
        raise RefusedRequest(f"request {request.id!r} has the id of another")


def test_a_request_of_the_stream_that_is_refused_is_logged_and_the_run_goes_on(tmp_path):
    source = ScriptedSource([4, ForgetRequest(label="a", id="r1"), 4])
    processor = build(tmp_path, source, request_intake=Refusing())
    assert len(list(processor.run())) == 8
    (event,) = [event for event in lines(tmp_path, "events") if event["kind"] == "refused"]
    assert event["reason"] == "request 'r1' has the id of another"


def test_unlabelled_batches_reach_neither_learner_nor_detector(tmp_path):
    detector = ScriptedDetector()
    processor = build(tmp_path, ScriptedSource([2, [None, None], 2]), detector=detector)
    assert len(list(processor.run())) == 6
    assert len(detector.losses) == 2
    assert processor.parts.scores.samples == 4


def test_holdout_is_examined_on_time_and_at_the_end(tmp_path):
    samples = next(iter(ScriptedSource([6]))).samples
    processor = build(
        tmp_path, ScriptedSource([4] * 12), holdout=[HoldoutPart("all", samples, end_offset=10)]
    )
    list(processor.run())
    offsets = [line["offset"] for line in lines(tmp_path, "metrics") if line["kind"] == "holdout"]
    assert offsets == [12, 20, 40, 48]
    assert processor.parts.history.A_Last == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("batches", "updates"),
    [([1] * 12, 3), ([4] * 3, 3), ([3, 4, 2, 1], 1)],  # in the last, 3 + 4 together, and three wait
)
def test_losses_of_small_batches_reach_the_detector_together(tmp_path, batches, updates):
    detector = ScriptedDetector()
    processor = build(tmp_path, ScriptedSource(batches), detector=detector, min_samples=4)
    list(processor.run())
    assert len(detector.losses) == updates


def test_losses_that_wait_for_others_survive_a_stop(tmp_path):
    def begun(folder):
        learner = FakeLearner(loss=lambda batch: 1.0 + batch.offset)
        return build(folder, ScriptedSource([3] * 10), learner=learner, commit_every=None, min_samples=7)

    whole = begun(tmp_path / "whole")
    list(whole.run())
    first = begun(tmp_path / "halves")
    for prediction in first.run():
        if prediction.offset == 14:
            first.stop()
    assert len(first.shift_handler.pending_losses) == 6
    second = begun(tmp_path / "halves")
    list(second.run())
    assert second.parts.detector.losses == whole.parts.detector.losses


def test_losses_that_are_not_finite_never_reach_the_detector(tmp_path):
    detector = ScriptedDetector()
    bad = {8, 12}
    learner = FakeLearner(loss=lambda batch: math.nan if batch.offset in bad else 1.0)
    processor = build(tmp_path, ScriptedSource([4] * 6), learner=learner, detector=detector)
    list(processor.run())
    assert processor.guard.skipped == 2
    assert len(detector.losses) == 4
    each_exactly_once(learner.consumed, [record_id(k) for k in range(24) if not 8 <= k < 16])


def test_too_many_in_a_row_end_the_run_and_leave_the_last_commit(tmp_path):
    learner = FakeLearner(loss=lambda batch: math.inf if batch.offset >= 32 else 1.0)
    with pytest.raises(NotFinite, match="3 steps in a row"):
        list(build(tmp_path, ScriptedSource([4] * 30), learner=learner, max_skipped=3).run())
    found = Checkpoints(tmp_path / "checkpoints", fingerprint={}).latest()
    assert found.offset == 32
    assert len(found.state["learner"]["consumed"]) == 32


def test_stop_commits_and_the_next_process_goes_on(tmp_path):
    first = build(tmp_path, ScriptedSource([4] * 10), commit_every=None)
    for prediction in first.run():
        if prediction.offset == 9:
            first.stop()
    assert first.stopped
    assert first.progress.offset == 12
    second = build(tmp_path, ScriptedSource([4] * 10), commit_every=None)
    assert second.progress.offset == 12
    list(second.run())
    assert not second.stopped
    each_exactly_once(second.learner.consumed, [record_id(k) for k in range(40)])


def test_restored_at_every_step_the_remainder_is_the_same(tmp_path):
    straight = build(tmp_path / "straight", ScriptedSource([4] * 10), commit_every=4)
    list(straight.run())
    for stop_at in range(4, 40, 4):
        folder = tmp_path / f"stop-{stop_at}"
        part = build(folder, ScriptedSource([4] * 10), commit_every=4)
        for prediction in part.run():
            if prediction.offset == stop_at - 1:
                part.stop()
        rest = build(folder, ScriptedSource([4] * 10), commit_every=4)
        list(rest.run())
        assert decided(rest) == decided(straight)
        for topic in ("predictions", "metrics", "events"):
            assert lines(folder, topic) == lines(tmp_path / "straight", topic)


@pytest.mark.faults
@pytest.mark.parametrize("items", [40, pytest.param(120, marks=pytest.mark.slow)])
def test_killed_at_any_item_every_record_is_consumed_once(tmp_path, items):
    """The sequence oracle: the run dies by SIGKILL at a third of the items and is resumed each time."""
    rng = random.Random(0)
    script = []
    for _ in range(items):
        script.append(rng.randint(1, 7))
        if rng.random() < 0.35:
            script.append(Crash("kill"))
    crashes = script.count(Crash("kill"))
    total = sum(item for item in script if isinstance(item, int))
    folder = tmp_path / "run"

    def go():
        list(build(folder, ScriptedSource(script, memory=tmp_path / "crashes"), commit_every=10).run())

    assert until_done(go) == crashes > items // 4
    found = Checkpoints(folder / "checkpoints", fingerprint={}).latest()
    each_exactly_once(found.state["learner"]["consumed"], [record_id(k) for k in range(total)])
    assert [line["offset"] for line in lines(folder, "predictions")] == list(range(total))
    plain = build(
        tmp_path / "plain", ScriptedSource([i for i in script if isinstance(i, int)]), commit_every=10
    )
    list(plain.run())
    topics = ("predictions", "metrics")
    assert [lines(folder, t) for t in topics] == [lines(tmp_path / "plain", t) for t in topics]


def test_without_commits_a_kill_loses_what_was_not_committed(tmp_path):
    """The guard seen failing: without the checkpoint the oracle notices."""
    script = [4, 4, 4, Crash("kill"), 4]
    code = in_child(lambda: list(build(tmp_path / "r", ScriptedSource(script, memory=tmp_path / "c")).run()))
    assert code == -signal.SIGKILL
    resumed = build(tmp_path / "r", ScriptedSource(script, memory=tmp_path / "c"))
    assert resumed.progress.offset == 0  # 16 records are one commit; the first 12 are played again
    list(resumed.run())
    each_exactly_once(resumed.learner.consumed, [record_id(k) for k in range(16)])


def test_an_empty_batch_passes_without_harm(tmp_path):
    processor = build(tmp_path, ScriptedSource([Batch(0, ()), 2]))
    assert len(list(processor.run())) == 2


def test_a_plateau_at_which_nothing_was_consolidated_is_not_called_a_consolidation(tmp_path):
    learner = FakeLearner()
    learner.consolidate = dict
    processor = build(tmp_path, ScriptedSource([4] * 10), learner=learner)
    list(processor.run())
    assert processor.shift_handler.consolidations == []
    assert "plateau" in [event["kind"] for event in lines(tmp_path, "events")]
