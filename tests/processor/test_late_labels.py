"""Labels that come after their records: in time, late, repeated, contradictory, and over a crash."""

from __future__ import annotations

import random

import pytest
from live_readers import Clock, ScriptedReader, record
from loop_runs import build, lines

from streamcl.errors import ForgettingError, SourceError
from streamcl.events import Batch, Sample
from streamcl.memory.waiting_samples import WaitingSamples
from streamcl.requests.label import Label
from streamcl.storage.plain_state import state_hash
from streams.live.arrival_log import ArrivalLog
from streams.live.cutting import Cutting
from streams.live.source import LiveSource


def unlabelled(number):
    return {**record(number), "label": None}


def label(number, name=None):
    return Label(f"r{number}", name or "ab"[number % 2])


def live(script, *, log=None, clock=None, **cutting):
    clock = clock or Clock()
    reader = ScriptedReader(script, clock, ends=True)
    cut = Cutting(**{"size": 4, "max_wait": 1.0, **cutting})
    return LiveSource(reader, cutting=cut, clock=clock, now=clock, log=log)


def store(**limits):
    return WaitingSamples(**{"max_samples": 100, "max_bytes": 10**6, **limits})


def run(folder, script, *, waiting=None, size=4, **options):
    source = live(script, size=size)
    waiting = store() if waiting is None else waiting
    processor = build(folder, source, waiting=waiting, clock=source.reader.clock, **options)
    yielded = list(processor.run())
    return processor, yielded


def counts(processor):
    return processor.state_dict()["labels"]["counts"]


def test_a_sample_is_learned_when_its_label_comes_and_scored_as_it_was_predicted_before(tmp_path):
    script = [(0.0, record(0)), (0.0, unlabelled(1)), (9.0, record(2)), (20.0, label(1)), (20.0, record(3))]
    processor, yielded = run(tmp_path, script)
    assert processor.learner.consumed == ["r0", "r2", "r1", "r3"]
    assert [each.id for each in yielded] == ["r0", "r1", "r2", "r3"]
    of_r1 = [each for each in lines(tmp_path, "predictions") if each["id"] == "r1"]
    assert [(each["label"], each["predicted"], each["offset"]) for each in of_r1] == [
        (None, None, 1),
        ("b", None, 1),
    ]
    assert [each.get("labelled_later") for each in of_r1] == [None, True]
    assert processor.parts.scores.samples == 4
    assert counts(processor) == {"in_time": 1}
    assert len(processor.parts.waiting) == 0


def test_labels_alone_are_learned_without_a_record(tmp_path):
    script = [(0.0, unlabelled(0)), (0.0, unlabelled(1)), (50.0, label(1)), (90.0, label(0))]
    processor, _ = run(tmp_path, script)
    assert processor.learner.consumed == ["r1", "r0"]
    assert processor.progress.offset == 2


def test_a_label_that_comes_with_its_record_is_learned_at_once(tmp_path):
    script = [(0.0, unlabelled(0)), (0.0, label(0)), (0.0, label(1)), (0.0, unlabelled(1))]
    processor, _ = run(tmp_path / "apart", script)
    together, _ = run(tmp_path / "together", [(0.0, record(0)), (0.0, record(1))])
    assert processor.learner.consumed == ["r0", "r1"]
    assert lines(tmp_path / "apart", "predictions") == lines(tmp_path / "together", "predictions")
    assert state_hash(processor.learner.state_dict()) == state_hash(together.learner.state_dict())


def test_a_label_of_no_record_that_waits_is_late(tmp_path):
    waiting = store(wait=5.0)
    script = [(0.0, unlabelled(0)), (20.0, label(0)), (20.0, label(7)), (21.0, record(1))]
    processor, _ = run(tmp_path, script, waiting=waiting)
    assert counts(processor) == {"expired": 1, "late": 2}
    assert processor.learner.consumed == ["r1"]
    said = [each for each in lines(tmp_path, "events") if each["kind"] == "label"]
    assert [(each["outcome"], each["count"]) for each in said] == [("expired", 1), ("late", 2)]
    assert not any("id" in each or "label" in each for each in said)


def test_the_oldest_leaves_where_there_is_no_room(tmp_path):
    script = [(0.0, unlabelled(k)) for k in range(4)] + [(9.0, label(k)) for k in range(4)]
    processor, _ = run(tmp_path, script, waiting=store(max_samples=3))
    assert processor.learner.consumed == ["r1", "r2", "r3"]
    assert counts(processor) == {"expired": 1, "late": 1, "in_time": 3}


class Corrections:
    """Corrections over what a fake learner has learned; `gone` cannot be taken out."""

    def __init__(self, learned, gone=()):
        self.learned, self.gone, self.taken = dict(learned), set(gone), []

    def learned_label(self, name):
        return self.learned.get(name)

    def take_out(self, ids):
        if self.gone & set(ids):
            raise ForgettingError("the sample cannot be fetched again")
        self.taken.append(list(ids))
        return [(int(name[1:]), Sample(name, record(0)["image"], self.learned[name])) for name in ids]


def test_the_same_label_again_changes_nothing_and_another_one_is_a_correction(tmp_path):
    corrections = Corrections({"r0": "a", "r1": "b"})
    script = [(0.0, record(0)), (0.0, record(1)), (9.0, label(0)), (9.0, label(1, "c")), (9.0, record(2))]
    processor, yielded = run(tmp_path, script, corrections=corrections)
    assert corrections.taken == [["r1"]]
    assert processor.learner.consumed == ["r0", "r1", "r1", "r2"]
    assert counts(processor) == {"repeated": 1, "corrected": 1}
    assert processor.parts.scores.samples == 3
    assert [each["id"] for each in lines(tmp_path, "predictions")] == ["r0", "r1", "r2"]
    assert [each.id for each in yielded] == ["r0", "r1", "r2"]


def test_a_correction_that_is_refused_keeps_no_other_from_being_made(tmp_path):
    corrections = Corrections({"r0": "a", "r1": "b", "r2": "a"}, gone={"r1"})
    script = [(0.0, record(k)) for k in range(3)] + [(9.0, label(k, "c")) for k in range(3)]
    processor, _ = run(tmp_path, script, corrections=corrections)
    assert corrections.taken == [["r0"], ["r2"]]
    assert counts(processor) == {"refused": 1, "corrected": 2}
    refused = [each for each in lines(tmp_path, "events") if each.get("outcome") == "refused"]
    assert [(each["id"], each["reason"]) for each in refused] == [
        ("r1", "the sample cannot be fetched again")
    ]


def test_of_several_labels_in_one_batch_the_last_counts(tmp_path):
    corrections = Corrections({"r0": "a"})
    script = [(0.0, record(0)), (0.0, unlabelled(1)), (9.0, label(1)), (9.0, label(1)), (9.0, label(1, "c"))]
    script += [(9.5, label(0, "b")), (9.5, label(0, "c")), (9.5, label(0, "c"))]
    processor, _ = run(tmp_path, script, corrections=corrections, size=8)
    assert processor.learner.classes == ("a", "c")
    assert counts(processor) == {"in_time": 1, "repeated": 2, "corrected": 2}


def withdrawal(number):
    return {"label_of": f"r{number}", "withdraw": True}


def test_a_label_that_is_withdrawn_before_it_is_learned_leaves_the_record_waiting(tmp_path):
    script = [(0.0, unlabelled(0)), (0.0, record(1)), (0.0, withdrawal(1)), (0.0, withdrawal(7))]
    script += [(9.0, label(0)), (9.0, withdrawal(0)), (9.0, withdrawal(0)), (20.0, withdrawal(0))]
    script += [(30.0, label(1)), (30.0, withdrawal(1)), (30.0, label(1)), (40.0, record(2))]
    processor, _ = run(tmp_path, script)
    assert processor.learner.consumed == ["r1", "r2"]
    assert counts(processor) == {"withdrawn": 3, "unlabelled": 3, "in_time": 3}
    assert processor.labels.summary()["waiting"] == 1
    assert processor.parts.scores.samples == 2


def test_a_record_whose_label_was_withdrawn_waits_for_another_and_is_scored_once(tmp_path):
    corrections = Corrections({"r1": "b"})
    script = [(0.0, record(0)), (0.0, record(1)), (9.0, withdrawal(1)), (9.5, withdrawal(1))]
    script += [(20.0, label(1, "c")), (30.0, record(2))]
    processor, yielded = run(tmp_path, script, corrections=corrections)
    assert corrections.taken == [["r1"]]
    assert processor.learner.consumed == ["r0", "r1", "r1", "r2"]
    assert processor.learner.classes[-1] == "c"
    assert counts(processor) == {"withdrawn": 1, "unlabelled": 1, "in_time": 1}
    assert processor.parts.scores.samples == 3
    assert [each["id"] for each in lines(tmp_path, "predictions")] == ["r0", "r1", "r2"]
    assert [each.id for each in yielded] == ["r0", "r1", "r2"]
    (said,) = [each for each in lines(tmp_path, "events") if each["kind"] == "label"]
    assert (said["outcome"], said["id"], said["label"]) == ("withdrawn", "r1", None)


def test_of_labels_and_withdrawals_in_one_batch_the_last_counts(tmp_path):
    corrections = Corrections({"r0": "a", "r1": "b"})
    script = [(0.0, record(0)), (0.0, record(1)), (9.0, label(0, "c")), (9.0, withdrawal(0))]
    script += [(9.0, withdrawal(1)), (9.0, label(1, "c"))]
    processor, _ = run(tmp_path, script, corrections=corrections, size=8)
    assert corrections.taken == [["r0", "r1"]]
    assert counts(processor) == {"withdrawn": 1, "corrected": 1}
    assert processor.labels.summary()["waiting"] == 1


def test_a_label_that_is_none_is_refused_and_said(tmp_path):
    script = [(0.0, unlabelled(0)), (9.0, Label("r0", ["a"])), (20.0, label(0))]
    processor, _ = run(tmp_path, script)
    assert counts(processor) == {"refused": 1, "in_time": 1}


def test_labels_are_an_error_where_the_run_keeps_no_records_for_them(tmp_path):
    source = live([(0.0, unlabelled(0)), (9.0, label(0))])
    with pytest.raises(SourceError, match="labels apart from their records"):
        list(build(tmp_path, source, clock=source.reader.clock).run())


def scrambled(count, seed):
    """Records and labels, late, repeated and out of order, and one that contradicts the one before."""
    draw = random.Random(seed)
    script = []
    for k in range(count):
        at = 0.4 * k
        script.append((at, record(k) if k % 5 == 4 else unlabelled(k)))
        for _ in range(draw.choice([0, 1, 1, 1, 2])):
            script.append((at + draw.choice([-1.0, 0.1, 3.0, 7.0, 30.0]), label(k)))
        if draw.random() < 0.3:
            script.append((at + draw.choice([-1.0, 0.1, 3.0, 7.0]), withdrawal(k)))
    script.append((4.0, label(0, "z")))
    return sorted(((max(0.0, at), value) for at, value in script), key=lambda each: each[0])


def opened(folder, script, clock):
    source = live(script, size=3, max_wait=None, clock=clock, log=ArrivalLog(folder / "arrivals.log"))
    return build(folder, source, clock=clock, waiting=store(wait=6.0, max_samples=7), commit_every=None)


def process_batch(processor, events):
    """Process events up to a batch; whether there was one."""
    for event in events:
        processor.process(event)
        if isinstance(event, Batch):
            return True
    return False


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_at_every_batch_becomes_the_same(tmp_path, seed):
    """Each process commits after one batch, goes on for one more, and is left there; time goes on."""
    script = scrambled(24, seed)
    undisturbed = opened(tmp_path / "undisturbed", script, Clock())
    list(undisturbed.run())
    undisturbed.source.close()
    clock, kills = Clock(), 0
    while True:
        processor = opened(tmp_path / "killed", script, clock)
        events = iter(processor.source)
        if not process_batch(processor, events):
            break
        processor.commit()
        process_batch(processor, events)
        processor.source.close()
        processor.parts.sink.close()
        kills += 1
    list(processor.run())
    processor.source.close()
    assert kills > 5
    expected, found = undisturbed.state_dict(), processor.state_dict()
    for part in ("learner", "labels", "scores", "predictions", "detector", "source"):
        assert state_hash({"it": found[part]}) == state_hash({"it": expected[part]}), part
    for topic in ("predictions", "events"):
        assert lines(tmp_path / "killed", topic) == lines(tmp_path / "undisturbed", topic)
    assert set(counts(processor)) >= {"in_time", "late", "expired"}
