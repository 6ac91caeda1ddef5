"""Several ranks on one run: what one process would have done, on all alike, through kills and requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canary_stream import CANARY_CLASS, traces
from fault_runs import LEARNERS, Done, left, lines, newest_state, start, streamcl
from rank_runs import start_ranks, streamcl_ranks, write_config

RUN = ("run", "stream.yaml", "--set")
QUICK = ("hybrid", "online_lora")
slow_but = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS]


def one_process(folder: Path, run_dir: str = "one") -> Path:
    done = streamcl(*RUN, f"run_dir={run_dir}", folder=folder)
    assert done.code == 0, done.err
    return folder / run_dir


def ranks(
    folder: Path, run_dir: str = "two", *, world: int = 2, code: int = 0, settings: Any = (), **options: Any
) -> list[Done]:
    overrides = [part for each in settings for part in ("--set", each)]
    done = streamcl_ranks(world, *RUN, f"run_dir={run_dir}", *overrides, folder=folder, **options)
    assert [each.code for each in done] == [code] * world, [each.err for each in done]
    assert not any("differ at offset" in each.err for each in done), "the learners had drifted apart"
    return done


def assert_close(found: Any, expected: Any, place: str = "") -> None:
    """Equal but for the last bits of sums."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for name in expected:
            assert_close(found[name], expected[name], f"{place}/{name}")
    elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        scale = float(np.abs(expected).max()) if expected.size else 0.0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * max(scale, 1e-3), err_msg=place)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, err_msg=place)
    else:
        assert found == pytest.approx(expected) if isinstance(expected, float) else found == expected, place


def told(run: Path) -> list[tuple[Any, ...]]:
    """What was decided, and where."""
    return [(e["kind"], e["offset"], e.get("classes")) for e in lines(run, "events") if e["kind"] != "start"]


@pytest.mark.long
@pytest.mark.parametrize("learner", slow_but)
def test_two_ranks_do_what_one_process_does(tmp_path, learner):
    write_config(tmp_path, learner)
    one, two = one_process(tmp_path), tmp_path / "two"
    ranks(tmp_path)
    asked = [[(p["offset"], p["id"], p["label"]) for p in lines(run, "predictions")] for run in (one, two)]
    assert asked[0] == asked[1]
    assert told(one) == told(two)
    assert_close(newest_state(two)["learner"], newest_state(one)["learner"])
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


@pytest.mark.long
def test_two_ranks_learn_the_same_robust_views(tmp_path):
    write_config(tmp_path, "hybrid")
    share = "learner.ridge.robust_share=0.3"
    done = streamcl(*RUN, "run_dir=one", "--set", share, folder=tmp_path)
    assert done.code == 0, done.err
    ranks(tmp_path, settings=(share,))
    one, two = (newest_state(tmp_path / name)["learner"] for name in ("one", "two"))
    assert_close(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["ridge", "online_lora"])
def test_three_ranks_and_batches_smaller_than_their_number(tmp_path, learner):
    source = {"class": "fault_sources:Pictures", "args": {"records": 49}}
    write_config(tmp_path, learner, source=source, batch=2)
    one = one_process(tmp_path)
    ranks(tmp_path, "three", world=3)
    assert told(one) == told(tmp_path / "three")
    assert_close(newest_state(tmp_path / "three")["learner"], newest_state(one)["learner"])


@pytest.mark.long
def test_what_is_forgotten_is_forgotten_everywhere_at_the_same_step(tmp_path):
    forget = [{"offset": 40, "class": "ant"}, {"offset": 64, "ids": ["000051", "000053"]}]
    write_config(tmp_path, "ridge", forgetting={"requests": forget})
    one, two = one_process(tmp_path), tmp_path / "two"
    ranks(tmp_path)
    assert [e for e in told(two) if e[0] == "forget"] == [("forget", 40, None), ("forget", 64, None)]
    assert told(two) == told(one)
    assert_close(newest_state(two)["learner"], newest_state(one)["learner"])
    assert newest_state(two)["learner"]["classes"] == newest_state(one)["learner"]["classes"]
    done = streamcl("verify", *sorted((two / "receipts").glob("*.json")), folder=tmp_path)
    assert done.code == 0, done.out + done.err


def test_a_held_out_part_that_bears_a_forgotten_name_is_dropped_by_every_rank(tmp_path):
    """Ranks whose figures differ could not commit."""
    source = {"class": "canary_stream:stream", "args": {"refused": False}}
    forget = {"requests": [{"offset": 40, "class": CANARY_CLASS}]}
    write_config(tmp_path, "ridge", source=source, forgetting=forget, evaluate={"every_samples": 16})
    ranks(tmp_path, settings=["max_samples=96"])
    assert traces(tmp_path / "two", [CANARY_CLASS]) == {}


@pytest.mark.long
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("learner", ["hybrid", pytest.param("online_lora", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others_with_a_word_and_nothing_is_lost(tmp_path, learner, victim):
    write_config(tmp_path, learner)
    ranks(tmp_path, "whole")
    kill = (("rank_runs:die_at", {"batch": 7}),)
    done = streamcl_ranks(2, *RUN, "run_dir=killed", folder=tmp_path, hooks={victim: kill})
    assert done[victim].code == -signal.SIGKILL
    assert done[1 - victim].code == 7
    assert "has lost contact with the others" in done[1 - victim].err
    ranks(tmp_path, "killed")
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_after_a_kill(tmp_path):
    write_config(tmp_path, "hybrid")
    ranks(tmp_path, "whole")
    source = {"class": "rank_runs:DiesOnce", "args": {"records": 96, "rank": 1, "at": 57}}
    write_config(tmp_path, "hybrid", source=source)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "2", "-m", "streamcl", *RUN, "run_dir=again", "--fresh"]
    here = str(Path(__file__).parents[1] / "support")
    path = os.pathsep.join([here, str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "--fresh is ignored" in done.stderr
    whole, again = left(tmp_path / "whole"), left(tmp_path / "again")
    assert again.predictions == whole.predictions
    assert again.events[1:] == whole.events[1:]  # the first names the source
    assert newest_state(tmp_path / "again")["progress"] == newest_state(tmp_path / "whole")["progress"]


@pytest.mark.slow
def test_a_request_to_a_run_that_is_going_on_reaches_every_rank(tmp_path):
    source = {"class": "fault_sources:Slow", "args": {"records": 96, "seconds": 0.05}}
    write_config(tmp_path, "hybrid", source=source)
    processes = start_ranks(2, *RUN, "run_dir=two", folder=tmp_path)
    while len(lines(tmp_path / "two", "events")) < 2:  # some batches have passed
        time.sleep(0.05)
    asked = streamcl("forget", "two", "--class", "ant", folder=tmp_path)
    assert asked.code == 0, asked.err
    assert [process.wait().code for process in processes] == [0, 0]
    assert "ant" not in newest_state(tmp_path / "two")["learner"]["exact"]["classes"]
    assert len(list((tmp_path / "two" / "receipts").glob("*.json"))) == 1
    assert not any(p.get("label") == "ant" for p in lines(tmp_path / "two", "predictions"))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_batch(tmp_path, asked):
    write_config(tmp_path, "ridge")
    ranks(tmp_path, "whole")
    stop = (
        (
            "fault_runs:signal_at",
            {"point": "streamcl.distributed.agreement:ReplicatedLearner.learn", "times": 1},
        ),
    )
    ranks(tmp_path, "stopped", code=143, hooks={asked: stop})
    assert 0 < newest_state(tmp_path / "stopped")["progress"]["offset"] < 96
    ranks(tmp_path, "stopped")
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_where_the_first_stopped(tmp_path):
    write_config(tmp_path, "ridge")
    one = one_process(tmp_path)
    streamcl_ranks(2, *RUN, "run_dir=mixed", "--set", "max_samples=40", folder=tmp_path)
    done = streamcl(*RUN, "run_dir=mixed", folder=tmp_path)
    assert done.code == 0, done.err
    assert "so far 2 ranks ran it, now 1" in done.err
    assert told(tmp_path / "mixed")[:-1] != []
    assert_close(newest_state(tmp_path / "mixed")["learner"], newest_state(one)["learner"])


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_when_the_time_is_over(tmp_path):
    write_config(tmp_path, "ridge", distributed={"timeout": 5.0})
    hang = (("rank_runs:hang_at", {"batch": 4}),)
    waiting, hanging = start_ranks(2, *RUN, "run_dir=two", folder=tmp_path, hooks={1: hang})
    done = waiting.wait()
    hanging.send(signal.SIGKILL)
    hanging.wait()
    assert done.code == 7
    assert "hangs" in done.err


def test_ranks_with_different_configurations_are_refused(tmp_path):
    write_config(tmp_path, "ridge")
    for done in start_ranks_apart(tmp_path, "seed=0", "seed=1"):
        assert done.code == 2
        assert "rank 1 has a different configuration from rank 0" in done.err
    assert not (tmp_path / "two").exists()


def start_ranks_apart(folder: Path, *settings: str) -> list[Done]:
    """One rank a setting."""
    from rank_runs import environments

    processes = [
        start(*RUN, "run_dir=two", "--set", each, folder=folder, env=env)
        for each, env in zip(settings, environments(len(settings)), strict=True)
    ]
    return [process.wait() for process in processes]


@pytest.mark.slow
def test_a_source_that_fails_on_one_rank_fails_on_all(tmp_path):
    write_config(tmp_path, "ridge", source={"class": "rank_runs:FailsOn", "args": {"rank": 1}})
    for done in ranks(tmp_path, code=3):
        assert "the camera of rank 1 is gone" in done.err


@pytest.mark.slow
def test_ranks_that_read_different_records_are_told_so(tmp_path):
    write_config(tmp_path, "ridge", source={"class": "rank_runs:own_camera"})
    for done in ranks(tmp_path, code=3):
        assert "reads another stream" in done.err


@pytest.mark.slow
def test_a_bad_image_that_one_rank_reads_is_quarantined_by_all(tmp_path):
    write_config(tmp_path, "ridge", source={"class": "fault_sources:Odd", "args": {"kind": "pixels nan"}})
    one, two = one_process(tmp_path), tmp_path / "two"
    ranks(tmp_path)
    assert lines(two, "quarantine") == lines(one, "quarantine") != []
    assert_close(newest_state(two)["learner"], newest_state(one)["learner"])


@pytest.mark.slow
def test_each_rank_reads_a_part_of_its_own(tmp_path):
    write_config(tmp_path, "ridge", source={"class": "rank_runs:Partitions"})
    ranks(tmp_path, "whole")
    read = lines(tmp_path / "whole", "predictions")
    assert sorted(p["id"] for p in read) == sorted(
        f"{part}-{i}" for part, n in ((0, 30), (1, 44)) for i in range(n)
    )
    assert [p["offset"] for p in read] == list(range(74))
    kill = (("rank_runs:die_at", {"batch": 5}),)
    streamcl_ranks(2, *RUN, "run_dir=killed", folder=tmp_path, hooks={1: kill})
    ranks(tmp_path, "killed")
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    ranks(tmp_path, "some", world=2, settings=("max_samples=24",))
    refused = streamcl_ranks(3, *RUN, "run_dir=some", folder=tmp_path)
    assert any("that of 2 shards" in each.err for each in refused), [each.err for each in refused]
