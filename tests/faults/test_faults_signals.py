"""F4: one signal ends the batch, commits and exits 143; a second one stops at once; nothing is lost."""

from __future__ import annotations

import signal
import time

import pytest
from fault_runs import Done, left, lines, newest_state, start, streamcl, until, write_config

pytestmark = pytest.mark.faults

HERE = ("--set", "run_dir=stopped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    write_config(folder)
    assert streamcl("run", "stream.yaml", "--set", "run_dir=whole", folder=folder).code == 0
    return folder


def goes_on_to_the_same_end(folder, name):
    done = streamcl("run", "stream.yaml", "--set", f"run_dir={name}", folder=folder)
    assert done.code == 0, done.err
    assert left(folder / name) == left(folder / "whole")


@pytest.mark.long
def test_a_process_killed_before_its_first_step_has_said_nothing(folder):
    process = start("run", "stream.yaml", "--set", "run_dir=never", folder=folder)
    process.send(signal.SIGKILL)
    assert process.wait() == Done(-signal.SIGKILL, "", "")


POINTS = {
    "in a batch": "streamcl.learners.online_lora:OnlineLoRALearner.learn",
    "in a consolidation": "streamcl.learners.online_lora:OnlineLoRALearner.consolidate",
    "as a checkpoint is written": "streamcl.storage.files.commit_folder",
    "in a commit": "streamcl.processor.loop:StreamProcessor.commit",
}


@pytest.mark.parametrize("which", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", POINTS)
def test_one_signal_ends_the_batch_commits_and_exits_143(folder, place, which):
    name = f"one-{which}-{list(POINTS).index(place)}"
    hook = ("fault_runs:signal_at", {"point": POINTS[place], "times": 1, "which": int(which)})
    done = streamcl("run", "stream.yaml", "--set", f"run_dir={name}", folder=folder, hooks=(hook,))
    assert done.code == 143, done.err
    assert "stopped at" in done.err
    assert "Traceback" not in done.err
    progress = newest_state(folder / name)["progress"]
    assert 0 < progress["offset"] < 96
    assert f"stopped at {progress['offset']} samples" in done.err  # what was learned is committed
    goes_on_to_the_same_end(folder, name)


@pytest.mark.long
@pytest.mark.parametrize("place", POINTS)
def test_two_signals_stop_at_once_and_the_last_checkpoint_is_good(folder, place):
    name = f"two-{list(POINTS).index(place)}"
    hook = ("fault_runs:signal_at", {"point": POINTS[place], "times": 2})
    done = streamcl("run", "stream.yaml", "--set", f"run_dir={name}", folder=folder, hooks=(hook,))
    assert done.code == 143
    assert "stopped at" not in done.err  # it did not wait for the batch's end
    assert newest_state(folder / name)["progress"]["offset"] < 96
    goes_on_to_the_same_end(folder, name)


@pytest.mark.long
def test_a_signal_is_heard_while_the_source_is_silent(folder):
    write_config(folder, "silent.yaml", source={"class": "fault_sources:Hangs"})
    process = start("run", "silent.yaml", "--set", "run_dir=silent", folder=folder)
    until(lambda: len(lines_or_none(folder / "silent") or ()) >= 5, process=process)
    time.sleep(0.3)  # until it waits for the source; a signal before that must end the run as well
    process.send(signal.SIGTERM)
    done = process.wait()
    assert done.code == 143, done.err
    assert newest_state(folder / "silent")["progress"]["offset"] == 40


def lines_or_none(run):
    return (run / "checkpoints").is_dir() and lines(run, "metrics")
