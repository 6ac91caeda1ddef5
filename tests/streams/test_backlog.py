"""How many records wait elsewhere: asked once a second, and counted down in between."""

from __future__ import annotations

from live_readers import Clock, ScriptedReader, record

from streamcl.sources.backlog import lag_of
from streams.live.backlog import LAG_EVERY, Backlog
from streams.live.cutting import Cutting
from streams.live.source import LiveSource
from streams.offsets import OffsetChecked
from streams.user.source import IterableSource


def test_the_lag_is_asked_now_and_then_and_counted_down_in_between():
    clock, asked = Clock(), []

    def lag():
        asked.append(clock.now)
        return None if clock.now > 5 else 100

    backlog = Backlog(lag, clock)
    assert backlog.records() == 100
    backlog.take(64)
    assert backlog.records() == 36
    backlog.take(64)
    assert backlog.records() == 0
    clock.now += LAG_EVERY
    assert (backlog.records(), len(asked)) == (100, 2)
    clock.now = 6.0
    assert (backlog.records(), len(asked)) == (0, 3)
    assert backlog.known() is None
    backlog.take(1)
    assert backlog.known() is None


def test_a_live_source_asks_for_its_lag_once_somebody_wants_to_know_it():
    clock = Clock()
    reader = ScriptedReader([(0.0, record(k)) for k in range(8)], clock, ends=True)
    asked = []
    reader.lag = lambda: asked.append(clock.now) or 5
    source = OffsetChecked(LiveSource(reader, cutting=Cutting(size=4, max_wait=1.0), clock=clock, now=clock))
    events = iter(source)
    next(events)
    assert not asked
    assert lag_of(source) is None
    list(events)
    assert asked
    assert lag_of(source) == 5
    assert lag_of(IterableSource(lambda: iter(()), name="s", batch_size=4)) is None
