"""Live sources: batches cut by number and by time, the same batches after a crash, previews, requests."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_readers import Clock, ScriptedReader, record

from streamcl.errors import CheckpointError, RefusedRequest, SourceError
from streamcl.events import Batch, ForgetRequest, Idle, Preview
from streamcl.requests.label import Label
from streamcl.testing import check_source
from streamcl.testing.source_checks import event_fingerprint, fingerprints, first_events
from streams.live.arrival_log import ArrivalLog, CutBatch
from streams.live.cutting import Cutting
from streams.live.iterable import IterableReader
from streams.live.source import LiveSource
from streams.user import records
from streams.user.records import to_sample
from streams.user.source import IterableSource


def source(script, *, size=4, wait=2.0, log=None, ends=True, gone=(), **cutting):
    clock = Clock()
    reader = ScriptedReader(script, clock, ends=ends, gone=gone)
    return LiveSource(reader, cutting=Cutting(size=size, max_wait=wait, **cutting), log=log, clock=clock)


def sizes(events):
    return [len(event.samples) for event in events if isinstance(event, Batch)]


def test_a_full_batch_goes_at_once_and_a_short_one_when_its_first_record_has_waited():
    made = source([(0.0, record(k)) for k in range(5)] + [(1.0, record(5)), (9.0, record(6))])
    assert sizes(made) == [4, 2, 1]


def test_without_a_longest_wait_a_batch_is_full_or_the_last():
    assert sizes(source([(9.0 * k, record(k)) for k in range(6)], wait=None)) == [4, 2]


def test_a_source_without_records_is_idle_and_holds_nothing_back():
    events = list(islice(source([(0.0, record(0))], ends=False), 12))
    assert sizes(events) == [1]
    assert [type(event) for event in events[-4:]] == [Idle] * 4


def test_a_request_ends_the_batch_before_it():
    request = ForgetRequest(id="q", label="a")
    made = source([(0.0, record(0)), (0.0, request), (0.0, record(1))])
    events = [event for event in made if not isinstance(event, Idle)]
    assert [type(event) for event in events] == [Batch, ForgetRequest, Batch]
    assert events[1].offset == 1


@pytest.mark.parametrize("killed_after", range(4))
def test_what_brings_nothing_into_the_stream_is_passed_over_and_replayed_alike(tmp_path, killed_after):
    refused = RefusedRequest("no request")
    values = [refused, record(0), refused, refused, record(1), ForgetRequest(id="q", label="a"), refused]
    script = [(0.0, each) for each in [*values, record(2), record(3), record(4)]]

    def made():
        return source(script, size=2, log=ArrivalLog(tmp_path / "arrivals.log"))

    expected = fingerprints(first_events(source(script, size=2)))
    first = made()
    first_events(first, killed_after)
    first.close()
    again = made()
    assert fingerprints(first_events(again)) == expected
    assert again.reader.next == len(script)
    again.close()


def test_previews_show_each_record_once_before_its_batch():
    made = source([(0.0, record(0)), (0.5, record(1)), (0.5, record(2))], size=4, previews=True)
    events = [event for event in made if not isinstance(event, Idle)]
    shown = [event.batch for event in events if isinstance(event, Preview)]
    assert [(batch.offset, len(batch.samples)) for batch in shown] == [(0, 1), (1, 2)]
    assert isinstance(events[-1], Batch)
    assert sizes(events) == [3]


SCRIPT = [(0.3 * k, record(k) if k % 7 != 5 else ForgetRequest(id=f"q{k}", label="a")) for k in range(23)]


def test_it_keeps_the_promises_of_a_source():
    check_source(lambda: source(SCRIPT), limit=None)


@given(st.integers(0, 12), st.integers(0, 12))
def test_batches_that_were_cut_before_a_crash_are_cut_alike_after_it(tmp_path_factory, at, further):
    """The process dies `further` events after its checkpoint; what comes then comes at another pace."""
    path = tmp_path_factory.mktemp("log") / "arrivals.log"
    first = source(SCRIPT, log=ArrivalLog(path))
    before = first_events(first, at)
    state = first.state_dict()
    lost = first_events(first, further)
    first.close()
    hasty = [(0.0, value) for _, value in SCRIPT]
    second = source(hasty, log=ArrivalLog(path))
    second.load_state_dict(state)
    again = first_events(second)
    second.close()
    assert fingerprints(again[: len(lost)]) == fingerprints(lost)
    ids = [sample.id for event in before + again if isinstance(event, Batch) for sample in event.samples]
    assert ids == [value["id"] for _, value in SCRIPT if isinstance(value, dict)]


def test_a_torn_entry_was_not_handed_out_and_is_dropped(tmp_path):
    path = tmp_path / "arrivals.log"
    first = source(SCRIPT, log=ArrivalLog(path))
    events = first_events(first, 3)
    first.close()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        entries = ArrivalLog(path).since(0)
        assert len(entries) == whole[:size].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: len(entries)])
    path.write_bytes(whole)
    again = source(SCRIPT, log=ArrivalLog(path))
    again.load_state_dict({"events": 0, "offset": 0, "seen": [], "reader": None})
    assert event_fingerprint(next(iter(again))) == event_fingerprint(events[0])
    again.close()


def test_a_log_with_a_hole_is_refused(tmp_path):
    log = ArrivalLog(tmp_path / "arrivals.log")
    log.append(CutBatch(0, (0,), 0.0))
    log.append(CutBatch(2, (2,), 0.0))
    log.close()
    with pytest.raises(CheckpointError, match="lacks batches"):
        log.since(0)


def test_a_record_that_is_gone_keeps_its_place_as_a_rejected_one(tmp_path):
    path = tmp_path / "arrivals.log"
    first = source(SCRIPT, log=ArrivalLog(path))
    first_events(first, 2)
    first.close()
    again = source(SCRIPT, log=ArrivalLog(path), gone=[1])
    again.load_state_dict({"events": 0, "offset": 0, "seen": [], "reader": None})
    (batch,) = first_events(again, 1)
    again.close()
    assert [(each.offset, each.reason) for each in batch.rejected] == [(1, "gone")]


def test_what_is_durable_is_passed_to_the_reader_and_leaves_the_log(tmp_path):
    path = tmp_path / "arrivals.log"
    log = ArrivalLog(path)
    made = source(SCRIPT, log=log, ends=False)
    events = iter(made)
    for _ in range(8):
        next(events)
    state = made.state_dict()
    made.acknowledge(state)
    for _ in range(5):
        next(events)
    made.close()
    assert made.reader.acknowledged == [state["reader"]]
    assert all(each.number >= state["events"] for each in ArrivalLog(path).since(state["events"]))
    assert len(path.read_bytes().splitlines()) == made.state_dict()["events"] - state["events"]


def test_a_reader_that_replays_fewer_records_is_an_error(tmp_path):
    class Short(ScriptedReader):
        def replay(self, keys):
            return super().replay(keys)[1:]

    path = tmp_path / "arrivals.log"
    log = ArrivalLog(path)
    log.append(CutBatch(0, (0, 1), 0.0))
    log.close()
    clock = Clock()
    made = LiveSource(Short(SCRIPT, clock), log=log, clock=clock)
    with pytest.raises(SourceError, match="replays 1 of 2"):
        next(iter(made))


def test_samples_are_fetched_by_their_ids():
    made = source(SCRIPT)
    first_events(made)
    again = source(SCRIPT)  # a request that was pending is carried out before anything is read
    again.load_state_dict(made.state_dict())
    (found,) = again.fetch(["r3", "no such id"])
    assert (found.id, found.label) == ("r3", "b")


def predict_only(events):
    return [event.predict_only for event in events if isinstance(event, Batch)]


BURST = [(0.0, record(k)) for k in range(24)]


def test_while_more_records_wait_than_allowed_batches_are_only_predicted():
    assert predict_only(source(BURST, overload=8)) == [True, True, True, False, False, False]
    assert predict_only(source(BURST, overload=100)) == [False] * 6
    assert predict_only(source(BURST)) == [False] * 6


def test_of_too_many_batches_one_in_so_many_is_learned():
    assert predict_only(source(BURST, overload=0, learn_one_in=3))[:5] == [False, True, True, False, True]


def test_what_was_only_predicted_is_only_predicted_in_a_replay(tmp_path):
    """After the restart fewer records wait, and the same batches are left out."""
    path = tmp_path / "arrivals.log"
    first = source(BURST, overload=8, log=ArrivalLog(path))
    before = predict_only(first_events(first, 3))
    first.close()
    again = source(BURST, log=ArrivalLog(path))
    again.load_state_dict({"events": 0, "offset": 0, "seen": [], "reader": None})
    assert predict_only(first_events(again, 3)) == before == [True] * 3
    again.close()


def own_batches(state):
    """A user's generator of batches of its own, with a position, and an error at the end."""

    class Batches:
        def __init__(self):
            self.at = 0

        def __iter__(self):
            while self.at < 4:
                self.at += 1
                first = 3 * (self.at - 1)
                samples = [to_sample(record(first + k), default_id="") for k in range(3)]
                labels = tuple(Label(f"r{first + k}", "late") for k in range(state.get("labels", 0)))
                yield Batch(first, tuple(samples), labels=labels)
                if state.get("labels"):
                    yield Batch(first + 3, (), labels=labels)
            if state["fails"]:
                raise RuntimeError("the camera is gone")

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, found):
            self.at = found["at"]

    inner = IterableSource(Batches, retries=0)
    inner.read_singly()
    return LiveSource(IterableReader(inner, 4), cutting=Cutting(size=4, max_wait=0.05))


def test_a_users_own_batches_are_cut_anew_and_resumed_within_one():
    def made():
        return own_batches({"fails": False})

    check_source(made)
    source = made()
    assert sizes(source) == [4, 4, 4]
    source.close()


def test_the_labels_in_a_users_own_batches_come_one_by_one_after_their_records():
    def made():
        return own_batches({"fails": False, "labels": 2})

    check_source(made)
    source = made()
    batches = [event for event in source if isinstance(event, Batch)]
    source.close()
    assert [sample.id for batch in batches for sample in batch.samples] == [f"r{k}" for k in range(12)]
    expected = [f"r{first + k}" for first in range(0, 12, 3) for _ in range(2) for k in range(2)]
    assert [label.id for batch in batches for label in batch.labels] == expected


def test_the_records_of_a_users_iterable_are_converted_once(monkeypatch):
    converted = []
    monkeypatch.setattr(
        records,
        "to_pixels",
        lambda image, policy, real=records.to_pixels: converted.append(0) or real(image, policy),
    )
    inner = IterableSource(lambda: iter([record(k) for k in range(6)]), retries=0)
    inner.read_singly()
    made = LiveSource(IterableReader(inner, 4), cutting=Cutting(size=4, max_wait=0.05))
    assert sum(sizes(made)) == 6
    made.close()
    assert len(converted) == 6


def test_records_that_came_before_an_error_precede_it():
    source = own_batches({"fails": True})
    events = iter(source)
    seen = [event for _ in range(3) if isinstance(event := next(events), Batch)]
    with pytest.raises(SourceError, match="the camera is gone"):
        seen.extend(events)
    assert sum(len(event.samples) for event in seen if isinstance(event, Batch)) == 12
    source.close()
