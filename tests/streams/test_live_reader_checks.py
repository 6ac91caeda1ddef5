"""Each broken promise of a live reader is found by `check_live_reader`."""

from __future__ import annotations

import pytest
from live_readers import Clock, ScriptedReader, record

from streamcl.sources.live_reader import Arrival
from streamcl.testing import check_live_reader

SCRIPT = [(0.0, record(number)) for number in range(5)]


class PollMoves(ScriptedReader):
    """Polling moves the position."""

    def poll(self, timeout):
        found = super().poll(timeout)
        self.advance([each.key for each in found or ()] or [self.next - 1])
        return found


class ForgetsItsPosition(ScriptedReader):
    """It begins one record later than where it was."""

    def open(self, position):
        super().open(position)
        self.read = max(0, self.read + (position is not None))


class ReplaysOthers(ScriptedReader):
    """A replay brings the records in another order."""

    def replay(self, keys):
        return super().replay(keys)[::-1]


class ReplaysTwice(ScriptedReader):
    """What was replayed comes again with a poll."""

    def replay(self, keys):
        found = super().replay(keys)
        self.read -= len(keys)
        return found


class KeysAreNotJson(ScriptedReader):
    """Keys are tuples, which JSON has not."""

    def poll(self, timeout):
        return [Arrival(each.value, (each.key,)) for each in super().poll(timeout) or ()] or None

    def advance(self, keys):
        super().advance([key for (key,) in keys])


class FetchesOthers(ScriptedReader):
    """It fetches what nobody has requested."""

    def fetch(self, ids):
        return ((value["id"], value) for _, value in self.script)


class AcknowledgeGoesBack(ScriptedReader):
    """After an acknowledgement records come again."""

    def acknowledge(self, position):
        self.read = position["next"]
        self.ends = False


class SlowToBegin(ScriptedReader):
    """Nothing comes with the first polls, as from a broker on a busy machine."""

    polls = 0

    def poll(self, timeout):
        self.polls += 1
        return [] if self.polls <= 5 else super().poll(timeout)


def make(kind):
    return lambda: kind(SCRIPT, Clock(), ends=True)


def test_a_reader_that_keeps_its_promises_passes():
    check_live_reader(make(ScriptedReader))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (PollMoves, "polling moved the position"),
        (ForgetsItsPosition, "other records come"),
        (ReplaysOthers, "replayed records are others"),
        (ReplaysTwice, "after a replay other records follow"),
        (KeysAreNotJson, "is not JSON"),
        (FetchesOthers, "not requested"),
        (AcknowledgeGoesBack, "came twice"),
    ],
)
def test_a_broken_promise_is_found(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_live_reader(make(kind))


def test_a_reader_that_is_slow_to_begin_passes():
    check_live_reader(make(SlowToBegin), count=len(SCRIPT))


def test_a_reader_that_fetches_needs_ids():
    script = [(at, {"image": value["image"]}) for at, value in SCRIPT]
    with pytest.raises(AssertionError, match="no record has one"):
        check_live_reader(lambda: FetchesOthers(script, Clock(), ends=True))


def test_too_few_records_show_nothing():
    with pytest.raises(AssertionError, match="only 2 records"):
        check_live_reader(lambda: ScriptedReader(SCRIPT[:2], Clock(), ends=True))
