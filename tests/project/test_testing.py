"""The shipped fakes: that they fail as they say they do, and that the oracles can tell."""

import json
import os
import signal
import sys
import time

import pytest

from streamcl.events import Batch, ForgetRequest
from streamcl.protocols import Learner, Source
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.lock import RunLock
from streamcl.storage.plain_state import state_hash
from streamcl.testing import (
    Bad,
    Crash,
    FakeLearner,
    FaultyDisk,
    Jump,
    PowerLoss,
    Raise,
    ScriptedCrash,
    ScriptedSource,
    Stall,
    check_sink,
    durable_calls,
    each_exactly_once,
    in_child,
    record_id,
    until_done,
)
from streamcl.testing.source_checks import check_source

pytestmark = pytest.mark.faults

IDS = [record_id(number) for number in range(40)]


def ids(events):
    return [sample.id for event in events if isinstance(event, Batch) for sample in event.samples]


# -- the scripted source -----------------------------------------------------------------------------------


def test_a_script_of_everything_is_a_source_like_any_other(tmp_path):
    request = ForgetRequest(id="r1", label="odd")
    script = [4, ["even", None], request, Bad(2), Stall(0), Crash("exception"), Raise(ValueError()), 3]

    passed = tmp_path / "crash and error that have happened"
    passed.write_text("5\n6\n")

    def make():
        return ScriptedSource(script, memory=passed)

    check_source(make)
    events = list(make())
    assert [(type(event).__name__, event.offset, event.end) for event in events] == [
        ("Batch", 0, 4),
        ("Batch", 4, 6),
        ("ForgetRequest", 6, 6),
        ("Batch", 6, 8),
        ("Batch", 8, 11),
    ]
    assert isinstance(make(), Source)
    assert events[1].samples[1].label is None
    assert [rejected.id for rejected in events[3].rejected] == ["000006", "000007"]


@pytest.mark.parametrize(
    ("item", "error", "times"), [(Crash(), ScriptedCrash, 1), (Raise(OSError("gone"), times=2), OSError, 2)]
)
def test_an_exception_comes_as_often_as_written_and_then_the_stream_goes_on(item, error, times):
    source = ScriptedSource([2, item, 2])
    assert next(iter(source)).offset == 0
    for _ in range(times):
        with pytest.raises(error):
            next(iter(source))
    assert ids(source) == IDS[2:4]
    assert source.state_dict() == {"item": 3, "offset": 4}


def test_a_jump_leaves_out_or_repeats():
    assert ids(ScriptedSource([2, Jump(1), 2])) == [IDS[0], IDS[1], IDS[3], IDS[4]]
    assert ids(ScriptedSource([2, Jump(-1), 2])) == [IDS[0], IDS[1], IDS[1], IDS[2]]


def test_a_kill_needs_a_memory():
    with pytest.raises(ValueError, match="needs `memory`"):
        ScriptedSource([Crash("kill")])


def test_samples_can_be_fetched_again():
    source = ScriptedSource([4])
    (batch,) = source
    (found,) = source.fetch(["000002", "nobody"])
    assert found.id == "000002"
    assert (found.image == batch.samples[2].image).all()
    assert found.label == batch.samples[2].label


# -- a run under kills -------------------------------------------------------------------------------------


def run(source, folder, disk=None, *, every=1, careless=False):
    """The smallest loop that keeps the promise: learn, and commit learner and position as one."""
    folder.mkdir(exist_ok=True)
    with RunLock(folder):
        checkpoints = Checkpoints(folder / "checkpoints", fingerprint={}, disk=disk or FaultyDisk())
        checkpoints.sweep()
        learner = FakeLearner()
        if loaded := checkpoints.latest():
            learner.load_state_dict(loaded.state["learner"])
            source.load_state_dict(loaded.state["source"])
        for step, event in enumerate(source):
            learner.learn(event)
            position = source.state_dict()
            if careless:
                position = {"item": max(0, position["item"] - 1), "offset": position["offset"] - 2}
            if step % every == 0:
                checkpoints.save(event.end, step, {"learner": learner.state_dict(), "source": position})
        checkpoints.save(0, 0, {"learner": learner.state_dict(), "source": source.state_dict()})


def consumed(folder):
    loaded = Checkpoints(folder / "checkpoints", fingerprint={}).latest(strict=True)
    return loaded.state["learner"]["consumed"]


def killed_twenty_times(tmp_path, **options):
    script = [2, Crash("kill")] * 20
    killed = until_done(
        lambda: run(ScriptedSource(script, memory=tmp_path / "m"), tmp_path / "run", **options)
    )
    assert killed == 20


@pytest.mark.long
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_after_twenty_kills_each_id_was_consumed_once(tmp_path, every):
    killed_twenty_times(tmp_path, every=every)
    each_exactly_once(consumed(tmp_path / "run"), IDS)
    run(ScriptedSource([2] * 20), tmp_path / "whole")
    whole = Checkpoints(tmp_path / "whole" / "checkpoints", fingerprint={}).latest()
    parts = Checkpoints(tmp_path / "run" / "checkpoints", fingerprint={}).latest()
    assert state_hash(whole.state["learner"]) == state_hash(parts.state["learner"])


@pytest.mark.long
def test_the_oracle_sees_a_position_that_is_not_the_learners(tmp_path):
    killed_twenty_times(tmp_path, careless=True)
    with pytest.raises(AssertionError, match=r"more than once|out of order|lost"):
        each_exactly_once(consumed(tmp_path / "run"), IDS)


@pytest.mark.long
def test_a_kill_at_every_durable_call_of_a_run_in_turn(tmp_path):
    """Each process dies at a later call than the one before it, until one comes through."""
    attempts = tmp_path / "attempts"

    def attempt():
        number = len(attempts.read_text()) + 1 if attempts.exists() else 1
        attempts.write_text("x" * number)
        run(ScriptedSource([2] * 4), tmp_path / "run", FaultyDisk(number, "kill"))

    killed = until_done(attempt)
    assert killed >= 20
    each_exactly_once(consumed(tmp_path / "run"), IDS[:8])


# -- the oracles can fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "complaint"),
    [
        (IDS[1:], "1 of 40 ids lost"),
        ([*IDS, IDS[3]], "consumed more than once"),
        ([*IDS, "x"], "never in the stream"),
        ([IDS[1], IDS[0], *IDS[2:]], "out of order at 0"),
    ],
)
def test_the_sequence_oracle_names_what_is_wrong(got, complaint):
    each_exactly_once(IDS, IDS)
    with pytest.raises(AssertionError, match=complaint):
        each_exactly_once(got, IDS)


def test_a_run_without_progress_or_with_an_error_fails(capfd):
    with pytest.raises(AssertionError, match="makes no progress"):
        until_done(lambda: os.kill(os.getpid(), signal.SIGKILL), limit=3)
    with pytest.raises(AssertionError, match="exit code 1 after 0 kills"):
        until_done(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert [in_child(lambda: sys.exit(code)) for code in (None, 3, "no")] == [0, 3, 1]  # noqa: B023


@pytest.mark.long
def test_a_child_that_hangs_is_killed_and_named():
    with pytest.raises(AssertionError, match=r"not ended after 0\.1 seconds"):
        in_child(lambda: time.sleep(60), seconds=0.1)
    with pytest.raises(AssertionError, match=r"not ended after 0\.1 seconds"):
        until_done(lambda: time.sleep(60), seconds=0.1)


class Forgetful(JsonlSink):
    """A sink that does not go back."""

    def load_state_dict(self, state):
        pass


class Shameless(JsonlSink):
    """A sink that says it has redacted."""

    def redact(self, target):
        return 2


def lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_sink_check_tells_a_good_one_from_a_bad_one(tmp_path):
    check_sink(lambda: JsonlSink(tmp_path / "good"), lambda: lines(tmp_path / "good"))
    with pytest.raises(AssertionError, match="after resuming"):
        check_sink(lambda: Forgetful(tmp_path / "bad"), lambda: lines(tmp_path / "bad"))
    with pytest.raises(AssertionError, match="after redacting"):
        check_sink(lambda: Shameless(tmp_path / "worse"), lambda: lines(tmp_path / "worse"))


# -- the learner and the disk ------------------------------------------------------------------------------


def test_the_fake_learner_learns_what_it_is_given():
    learner: Learner = FakeLearner(lambda batch: float("nan") if batch.offset == 2 else 0.5)
    first, second, third = ScriptedSource([["a", "a"], ["b", "b"], ["b", None]])
    assert learner.predict(first.samples)[0].label is None
    assert learner.learn(first).losses == (0.5, 0.5)
    before = state_hash(learner.state_dict())
    refused = learner.learn(second)
    assert not refused.learned
    assert state_hash(learner.state_dict()) == before
    result = learner.learn(third)
    assert [(made.label, made.confidence) for made in result.predictions] == [("a", 1.0), ("a", 1.0)]
    assert learner.consumed == ["000000", "000001", "000004"]
    assert learner.classes == ("a", "b")
    assert learner.consolidate() == {"consumed": 3}
    other = FakeLearner()
    other.load_state_dict(learner.state_dict())
    learner.learn(first)
    assert other.consumed == ["000000", "000001", "000004"]
    assert other.consolidated == [3]


def test_a_full_disk_stays_full_but_lets_go(tmp_path):
    disk = FaultyDisk(2, "enospc")
    handle = disk.create(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            disk.write(handle, b"abc")
    disk.fsync(handle)
    handle.close()
    disk.unlink(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_short_write_takes_half(tmp_path):
    disk = FaultyDisk(2, "short")
    with disk.create(tmp_path / "a") as handle:
        assert disk.write(handle, b"abcd") == 2
        with pytest.raises(OSError, match="No space"):
            disk.write(handle, b"cd")


def test_a_loss_of_power_takes_what_was_not_synced(tmp_path):
    (tmp_path / "kept").write_bytes(b"kept")
    disk = FaultyDisk(7, "drop_unsynced")
    with disk.create(tmp_path / "new") as handle:
        disk.write(handle, b"new")
    disk.mkdir(tmp_path / "folder")
    disk.unlink(tmp_path / "kept")
    disk.replace(tmp_path / "new", tmp_path / "folder" / "new")
    with disk.append(tmp_path / "log") as handle, pytest.raises(PowerLoss):
        disk.write(handle, b"log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_calls_are_counted_by_name(tmp_path):
    calls = durable_calls(lambda disk: disk.mkdir(tmp_path / "a"))
    assert calls == ["mkdir a"]
