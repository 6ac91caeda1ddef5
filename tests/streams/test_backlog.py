"""How many records wait elsewhere: asked once a second, and counted down in between."""

from __future__ import annotations

from live_readers import Clock

from streams.live.backlog import LAG_EVERY, Backlog


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
