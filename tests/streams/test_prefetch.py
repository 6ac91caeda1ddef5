import gc
import threading
import time
from itertools import count

import numpy as np
import pytest

from streamcl.errors import SourceError
from streamcl.events import Batch, ForgetRequest, HoldoutPart, RejectedRecord, Sample, StreamInfo
from streamcl.protocols import fetch_of
from streamcl.testing.source_checks import (
    check_source,
    event_fingerprint,
    fingerprints,
    first_events,
    samples_of,
)
from streams.offsets import OffsetChecked, Take
from streams.prefetch import Prefetcher
from streams.user.source import IterableSource


def sample(number):
    return Sample(f"n{number}", np.full((2, 2, 3), number % 256, np.uint8), str(number % 3))


def batch(offset, size, rejected=()):
    left_out = tuple(RejectedRecord(place, f"n{place}", "bad") for place in rejected)
    places = [place for place in range(offset, offset + size) if place not in rejected]
    return Batch(offset, tuple(sample(place) for place in places), left_out)


EVENTS = (
    batch(0, 4),
    batch(4, 3, rejected=(5,)),
    ForgetRequest(id="r", offset=7, label="1"),
    batch(7, 5, rejected=(7, 8)),
    batch(12, 2),
    batch(14, 6),
)


class Scripted:
    """Yields the events; an exception in the script is raised, a threading.Event is waited for."""

    replayable = True

    def __init__(self, script=EVENTS, length=None):
        self.script, self.place = list(script), 0
        part = HoldoutPart("part", (sample(1),), end_offset=15)
        self.info = (
            StreamInfo("scripted", length, shifts=(4, 12), holdout=(part,))
            if length
            else StreamInfo("scripted")
        )

    def __iter__(self):
        self.thread = threading.current_thread()
        while self.place < len(self.script):
            item = self.script[self.place]
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, threading.Event):
                item.wait(120)
            self.place += 1
            if not isinstance(item, threading.Event):
                yield item

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]

    def fetch(self, ids):
        yield from (sample(int(name[1:])) for name in ids if name[1:].isdigit())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prefetcher(Scripted(length=20), 0),
        lambda: Prefetcher(Scripted(length=20), 1),
        lambda: Prefetcher(Scripted(length=20), 3),
        lambda: Prefetcher(Scripted(length=20), 50),
        lambda: OffsetChecked(Scripted(length=20)),
        lambda: OffsetChecked(
            Scripted((*EVENTS[:2], EVENTS[0], EVENTS[1], batch(5, 6), Batch(11, ()), batch(10, 10)))
        ),
        lambda: Prefetcher(Take(OffsetChecked(Scripted(length=20)), 13), 2),
        *[lambda limit=limit: Take(Scripted(length=20), limit) for limit in (1, 4, 5, 7, 8, 13, 20, 99)],
    ],
)
def test_guarded_sources_are_sources(make):
    check_source(make, limit=None)


def test_nothing_is_changed_by_reading_ahead():
    for depth in (0, 1, 2, 10):
        assert fingerprints(first_events(Prefetcher(Scripted(), depth))) == fingerprints(EVENTS)


def test_the_state_is_that_of_the_event_handed_out_not_of_those_read_ahead():
    inner = Scripted()
    source = Prefetcher(inner, 4)
    events = iter(source)
    assert source.state_dict() == {"place": 0}
    next(events)
    until(lambda: inner.place >= 5)
    assert source.state_dict() == {"place": 1}
    next(events)
    assert source.state_dict() == {"place": 2}


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.005)


def test_it_reads_no_further_than_its_depth():
    class Endless(Scripted):
        def __iter__(self):
            for number in count(self.place):
                self.place = number + 1
                yield batch(number * 2, 2)

    inner = Endless()
    source = Prefetcher(inner, 3)
    events = iter(source)
    for handed_out in range(1, 20):
        next(events)
        until(lambda: inner.place == handed_out + 3 + 1)  # noqa: B023 - three in the queue, one to be put
    source.close()


def test_looking_ahead_takes_nothing_away():
    source = Prefetcher(Scripted(), 2)
    events = iter(source)
    first = next(events)
    assert fingerprints(source.peek(1)) == fingerprints(EVENTS[1:2])
    assert fingerprints(source.peek(8)) == fingerprints(EVENTS[1:4])
    assert source.state_dict() == {"place": 1}
    assert fingerprints(source.peek(1000)) == fingerprints(EVENTS[1:])
    assert fingerprints([first, *events]) == fingerprints(EVENTS)
    assert source.peek(1) == []


def test_what_was_looked_at_comes_again_after_loading_and_closing():
    source = Prefetcher(Scripted(), 2)
    events = iter(source)
    next(events)
    source.peek(9)
    source.close()
    assert fingerprints([next(iter(source))]) == fingerprints(EVENTS[1:2])
    source.peek(9)
    source.load_state_dict({"place": 3})
    assert fingerprints(first_events(source)) == fingerprints(EVENTS[3:])


def test_looking_ahead_ends_at_an_error_which_is_raised_in_its_turn():
    source = Prefetcher(Scripted([*EVENTS[:2], SourceError("torn")]), 2)
    events = iter(source)
    assert fingerprints(source.peek(1000)) == fingerprints(EVENTS[:2])
    assert fingerprints([next(events), next(events)]) == fingerprints(EVENTS[:2])
    with pytest.raises(SourceError, match="torn"):
        next(events)


def test_without_a_thread_there_is_nothing_to_look_ahead_with():
    assert Prefetcher(Scripted(), 0).peek(5) == []


def test_errors_come_after_the_events_before_them_and_stay():
    source = Prefetcher(Scripted((*EVENTS[:2], OSError("gone"))), 5)
    events = iter(source)
    assert [event_fingerprint(next(events)) for _ in range(2)] == fingerprints(EVENTS[:2])
    for _ in range(2):
        with pytest.raises(SourceError, match="after offset 7: OSError: gone") as caught:
            next(iter(source))
        assert isinstance(caught.value.__cause__, OSError)
    mine = SourceError("mine")
    with pytest.raises(SourceError) as caught:
        first_events(Prefetcher(Scripted((mine,)), 1))
    assert caught.value is mine
    with pytest.raises(SourceError, match=r"sys\.exit\(3\) was called"):
        first_events(Prefetcher(Scripted((SystemExit(3),)), 1))
    with pytest.raises(KeyboardInterrupt):
        first_events(Prefetcher(Scripted((KeyboardInterrupt(),)), 1))


def test_a_stalled_source_is_an_error_not_a_hang():
    never, hours = threading.Event(), count(0, 3600)
    script = Scripted((EVENTS[0], never))
    source = Prefetcher(script, 2, stall_timeout=10_000, clock=lambda: next(hours))
    events = iter(source)
    next(events)
    with pytest.raises(SourceError, match="stalled: no event within 10000 seconds"):
        next(events)
    assert source.state_dict() == {"place": 1}
    never.set()


def test_a_slow_source_is_not_a_stalled_one():
    asked, now = threading.Semaphore(0), [0.0]

    class Slow(Scripted):
        def __iter__(self):
            for event in super().__iter__():
                asked.acquire()
                now[0] += 40.0
                yield event

    events = iter(Prefetcher(Slow(), 2, stall_timeout=50.0, clock=lambda: now[0]))
    for expected in EVENTS:
        asked.release()
        assert fingerprints([next(events)]) == fingerprints([expected])
    assert now[0] == 40.0 * len(EVENTS)  # far more than the timeout, though never between two events


def test_close_ends_the_thread_and_keeps_the_place():
    inner = Scripted()
    source = Prefetcher(inner, 2)
    first = first_events(source, 2)
    source.close()
    source.close()
    assert not inner.thread.is_alive()
    assert fingerprints(first + first_events(source)) == fingerprints(EVENTS)


def test_a_source_that_is_dropped_ends_its_thread():
    inner = Scripted()
    source = Prefetcher(inner, 1)
    first_events(source, 1)
    del source
    gc.collect()
    inner.thread.join(120)
    assert not inner.thread.is_alive()


def test_loading_drops_what_was_read_ahead():
    source = Prefetcher(Scripted(), 4)
    first_events(source, 4)
    source.load_state_dict({"place": 1})
    assert fingerprints(first_events(source)) == fingerprints(EVENTS[1:])


def test_a_thread_that_does_not_stop_is_not_shared():
    never = threading.Event()
    source = Prefetcher(Scripted((EVENTS[0], never)), 2, stall_timeout=0.1)
    first_events(source, 1)
    with pytest.raises(SourceError, match="does not stop"):
        source.load_state_dict({"place": 0})
    never.set()


def test_a_wrapper_fetches_where_the_wrapped_source_does():
    for source in (
        Prefetcher(Scripted()),
        Take(Scripted(), 3),
        OffsetChecked(Take(Prefetcher(Scripted()), 3)),
    ):
        assert [each.id for each in source.fetch(["n5"])] == ["n5"]
        assert not hasattr(source, "nothing")
    once = IterableSource(lambda: iter([]))
    assert fetch_of(once) is None
    assert OffsetChecked(once).fetch is None
    assert Take(OffsetChecked(once), 3).fetch is None


def test_interrupt_close_and_generators_reach_the_prefetcher_inside():
    never = threading.Event()
    inner = Scripted((EVENTS[0], never))
    source = Take(OffsetChecked(Prefetcher(inner, 2, capture_rng=lambda: {"drawn": 1})), 13)
    events = iter(source)
    next(events)
    assert source.rng_state() == {"drawn": 1}
    source.interrupt()
    assert next(events, None) is None
    never.set()
    source.close()
    assert not inner.thread.is_alive()
    plain = OffsetChecked(Scripted())
    plain.interrupt()
    assert plain.rng_state() == {}


def test_a_gap_is_an_error_and_a_duplicate_is_dropped():
    source = OffsetChecked(Scripted((batch(0, 4), batch(2, 2), batch(3, 3, rejected=(4,)), batch(7, 1))))
    events = iter(source)
    assert [(event.offset, event.end) for event in (next(events), next(events))] == [(0, 4), (4, 6)]
    with pytest.raises(SourceError, match="from offset 6 to 7"):
        next(events)


def test_a_request_is_never_dropped():
    late = ForgetRequest(id="late", offset=1, label="1")
    (_, request) = first_events(OffsetChecked(Scripted((batch(0, 4), late))))
    assert (request.id, request.offset) == ("late", 4)


def test_a_gap_right_after_a_restart_is_seen():
    source = OffsetChecked(Scripted())
    first_events(source, 2)
    state = source.state_dict()
    restored = OffsetChecked(Scripted((*EVENTS[:2], *EVENTS[4:])))
    restored.load_state_dict(state)
    with pytest.raises(SourceError, match="from offset 7 to 12"):
        first_events(restored)


def test_a_limit_splits_the_batch_that_crosses_it():
    source = Take(Scripted(length=20), 10)
    events = first_events(source)
    assert events[-1].end == 10
    assert [(one.offset, one.id) for one in events[-1].rejected] == [(7, "n7"), (8, "n8")]
    assert [one.id for one in events[-1].samples] == ["n9"]
    assert (source.info.length, source.info.shifts, source.info.holdout[0].end_offset) == (10, (4,), None)
    assert first_events(source) == []


@pytest.mark.parametrize("limit", range(1, 20))
def test_under_a_higher_limit_nothing_is_lost(limit):
    source = Take(Scripted(), limit)
    first = first_events(source)
    further = Take(Scripted(), 1000)
    further.load_state_dict(source.state_dict())
    names = [one.id for one in samples_of(first + first_events(further))]
    assert names == [one.id for one in samples_of(EVENTS)]
