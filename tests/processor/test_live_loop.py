"""The loop over an endless stream: commits and flushes by time, predictions at arrival, idle moments."""

from __future__ import annotations

from itertools import groupby

import pytest
from forgetting_fakes import Opened
from live_readers import Clock, ScriptedReader, record
from log_messages import logged
from loop_runs import build, lines

from streamcl.events import ForgetRequest
from streamcl.processor.arrivals import HEARTBEAT
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints, SavedCheckpoint
from streams.live.arrival_log import ArrivalLog
from streams.live.cutting import Cutting
from streams.live.source import LiveSource


class Saves:
    """A store that notes when it saves; each checkpoint is durable with the next save, as in a thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.at, self.before, self.steps = clock, [], None, []

    def save(self, offset, step, state):
        saved, self.before = self.before, SavedCheckpoint("", 0, 0.0)
        self.at.append((self.clock.now, offset))
        self.steps.append(step)
        return saved

    def oldest_step(self):
        """The step of the save before the last one, which is durable."""
        return self.steps[-2] if len(self.steps) > 1 else None


def live(script, clock, *, log=None, **cutting):
    reader = ScriptedReader(script, clock, ends=True)
    return LiveSource(reader, cutting=Cutting(**cutting), clock=clock, log=log)


END = 200.0
QUIET = [(0.0, record(0)), (1.0, record(1)), (END, record(2))]


def test_what_was_learned_is_committed_by_time_while_the_source_is_idle(tmp_path):
    clock = Clock()
    saves = Saves(clock)
    source = live(QUIET, clock)
    list(
        build(tmp_path, source, checkpoints=saves, clock=clock, commit_every=None, commit_seconds=10.0).run()
    )
    begin, idle, *_ = saves.at
    assert begin == (0.0, 0)
    assert idle[1] == 2
    assert 10.0 <= idle[0] <= 12.0
    assert [offset for _, offset in saves.at].count(2) == 1  # nothing new came, so nothing is saved again


def test_only_positions_with_a_durable_checkpoint_are_acknowledged(tmp_path):
    clock = Clock()
    source = live([(float(k), record(k)) for k in range(12)], clock, size=2)
    list(build(tmp_path, source, checkpoints=Saves(clock), clock=clock, commit_every=4).run())
    assert [position["next"] for position in source.reader.acknowledged] == [4, 8]


class Flushes(JsonlSink):
    def __init__(self, folder, clock):
        super().__init__(folder)
        self.clock, self.at = clock, []

    def flush(self):
        super().flush()
        self.at.append(self.clock.now)


def test_records_are_on_disk_within_the_time_for_it(tmp_path):
    clock = Clock()
    (tmp_path / "beside").mkdir()
    sink = Flushes(tmp_path / "beside", clock)
    list(build(tmp_path, live(QUIET, clock), clock=clock, beside=sink, flush_seconds=1.0).run())
    waits = [after - before for before, after in zip(sink.at, sink.at[1:], strict=False)]
    assert max(waits) <= 2.0
    sink.close()


def test_a_waiting_run_says_so_now_and_then(tmp_path):
    clock = Clock()
    with logged() as messages:
        list(build(tmp_path, live(QUIET, clock), clock=clock).run())
    waiting = [each for each in messages if each.startswith("waiting: 2 records so far, last at")]
    assert len(waiting) == int(END // HEARTBEAT)


def test_records_are_predicted_as_they_come_and_that_prediction_counts(tmp_path):
    clock = Clock()
    script = [(float(k), record(k)) for k in range(6)]
    at_arrival = build(tmp_path / "a", live(script, clock, size=3, max_wait=None, previews=True), clock=clock)
    yielded = list(at_arrival.run())
    with_batch = build(tmp_path / "b", live(script, Clock(), size=3, max_wait=None), clock=Clock())
    list(with_batch.run())
    assert [each.id for each in yielded] == [f"r{k}" for k in range(6)]
    predictions = [lines(folder, "predictions") for folder in (tmp_path / "a", tmp_path / "b")]
    without_step = [[{**each, "step": None} for each in made] for made in predictions]
    assert without_step[0] == without_step[1]
    assert at_arrival.parts.scores.accuracy == with_batch.parts.scores.accuracy
    assert not at_arrival.state_dict().get("arrivals")


def test_a_class_forgotten_between_arrival_and_batch_is_named_by_no_prediction_that_waits(tmp_path):
    clock = Clock()
    script = [(float(at), record(number)) for at, number in enumerate([1, 3, 5, 0, 2, 4, 6, 8])]
    source = live(script, clock, size=4, max_wait=None, previews=True)
    with Opened(tmp_path, source) as opened:
        for prediction in opened.processor.run():
            if prediction.offset == 5:
                assert prediction.predicted == "b"
                opened.forgetting.submit(ForgetRequest(label="b", id="r1"))
                opened.processor.forget()
                waiting = opened.processor.state_dict()["arrivals"]
                assert waiting.keys() == {"4", "5"}
                assert {label for label, _ in waiting.values()} == {None}
        scores = opened.processor.parts.scores
        assert scores.samples == 8
        assert "b" not in {name for pair in scores.state_dict()["confusion"] for name in pair[:2]}
    source.close()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_run_that_stops_between_arrival_and_batch_goes_on_alike(tmp_path, size):
    """Committed after each event, restored, and driven by a source that is opened anew."""
    clock = Clock()
    script = [(float(k), record(k)) for k in range(9)]
    whole = build(tmp_path / "whole", live(script, clock, size=size, previews=True), clock=clock)
    list(whole.run())
    folder, events = tmp_path / "stopped", 0
    while True:
        clock = Clock()
        log = ArrivalLog(folder / "arrivals.log")
        source = live(script, clock, size=size, previews=True, log=log)
        processor = build(folder, source, clock=clock, commit_every=None)
        for _ in processor.run():
            events += 1
            processor.stop()
        source.close()
        if processor.progress.finished:
            break
    assert events == 9
    assert processor.learner.consumed == whole.learner.consumed
    ids = [each["id"] for each in lines(folder, "predictions")]
    assert ids == [f"r{k}" for k in range(9)]
    assert Checkpoints(folder / "checkpoints", fingerprint={}).latest().state["progress"]["finished"]


def test_an_overload_is_counted_and_said_and_nothing_of_it_is_learned(tmp_path):
    clock = Clock()
    script = [(0.0, record(k)) for k in range(20)]
    processor = build(tmp_path, live(script, clock, size=4, overload=8), clock=clock)
    with logged() as messages:
        predictions = list(processor.run())
    assert len(predictions) == 20
    assert processor.learner.consumed == [f"r{k}" for k in range(8, 20)]
    assert processor.overload.predicted_only == 8
    kinds = [each["kind"] for each in lines(tmp_path, "events")]
    assert kinds.count("overload") == kinds.count("overload_end") == 1
    assert "the overload is over: 8 records were predicted and not learned" in messages
    restored = build(tmp_path, live(script, Clock(), size=4, overload=8), clock=Clock())
    assert restored.overload.predicted_only == 8


def sizes(folder):
    """The number of predictions of each step."""
    return [len(list(group)) for _, group in groupby(each["step"] for each in lines(folder, "predictions"))]


def test_where_the_newest_checkpoint_is_damaged_the_one_before_it_goes_on_alike(tmp_path):
    """The log of cuts reaches back as far as the oldest checkpoint that is kept."""
    script = [(0.6 * k, record(k)) for k in range(40)]
    whole = build(tmp_path / "whole", live(script, clock := Clock(), size=4), clock=clock, commit_every=8)
    list(whole.run())
    folder = tmp_path / "damaged"
    source = live(script, clock := Clock(), size=4, log=ArrivalLog(folder / "arrivals.log"))
    first = build(folder, source, clock=clock, commit_every=8)
    for made in first.run():
        if made.offset == 30:
            break
    source.close()
    oldest, newest = Checkpoints(folder / "checkpoints", fingerprint={}).paths()
    max(newest.iterdir(), key=lambda path: path.stat().st_size).write_bytes(b"torn")
    hasty = [(0.0, value) for _, value in script]
    source = live(hasty, clock := Clock(), size=4, log=ArrivalLog(folder / "arrivals.log"))
    again = build(folder, source, clock=clock, commit_every=8)
    assert again.progress.step == int(oldest.name.rpartition("-")[2])
    list(again.run())
    source.close()
    assert again.learner.consumed == whole.learner.consumed
    before, after = (sizes(each) for each in (tmp_path / "whole", folder))
    assert before[:6] == after[:6]


def test_an_erasure_leaves_no_name_in_the_log_of_cuts(tmp_path):
    """After it the log begins where the only checkpoint that is left stands."""
    path = tmp_path / "arrivals.log"
    log = ArrivalLog(path)
    source = live([(0.0, record(k)) for k in range(9)], clock := Clock(), size=4, log=log)
    processor = build(tmp_path, source, clock=clock, commit_every=4)
    events = processor.run()
    for _ in range(8):
        next(events)
    store = processor.parts.checkpoints
    processor.commit()
    store.purge_before(store.paths()[-1])
    processor.acknowledge()
    assert path.read_bytes() == b""
    source.close()
