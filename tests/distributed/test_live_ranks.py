"""Live sources on several ranks: each record once, the same steps after a crash, other numbers of ranks."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_runs import left, lines, newest_state, streamcl
from live_shards import all_ids
from rank_runs import streamcl_ranks, write_config

pytestmark = pytest.mark.long

RUN = ("run", "stream.yaml", "--set")
LENGTHS = (40, 30, 26)
KEEP = ("live_shards:keep_logs", {})


def die(batch: int) -> tuple[str, dict[str, int]]:
    return ("rank_runs:die_at", {"batch": batch})


def write(folder: Path, **changes: Any) -> None:
    source = {"class": "live_shards:RandomFeeds", "args": {"lengths": list(LENGTHS)}}
    options = {"source": source, "batch": {"size": 8, "max_wait": 0.05}, "learner": "ridge", **changes}
    write_config(folder, **options)


def run(folder: Path, world: int, *settings: str, run_dir: str = "run", hooks: Any = None) -> list[Any]:
    overrides = [part for each in (f"run_dir={run_dir}", *settings) for part in ("--set", each)]
    return streamcl_ranks(world, *RUN[:-1], *overrides, folder=folder, hooks=hooks)


def finish(folder: Path, world: int, *settings: str, run_dir: str = "run", hooks: Any = None) -> None:
    done = run(folder, world, *settings, run_dir=run_dir, hooks=hooks)
    assert [each.code for each in done] == [0] * world, [each.err for each in done]


def consumed(run_dir: Path) -> list[str]:
    return sorted(each["id"] for each in lines(run_dir, "predictions"))


@pytest.mark.parametrize("victims", [(0, 1), pytest.param((1,), marks=pytest.mark.slow)])
def test_a_killed_run_learns_each_record_once_and_in_the_steps_of_one_that_was_not(tmp_path, victims):
    """The undisturbed run is given the whole logs of the killed one, since records come at random moments."""
    write(tmp_path, checkpoint={"every_samples": 12})
    hooks = {rank: (KEEP, *([die(9)] if rank in victims else [])) for rank in range(2)}
    done = run(tmp_path, 2, hooks=hooks)
    codes = {each.code for each in done}  # 7: of a rank that notices the other's death before its own
    assert -signal.SIGKILL in codes <= {-signal.SIGKILL, 7}
    assert newest_state(tmp_path / "run")["progress"]["offset"] < sum(LENGTHS)
    finish(tmp_path, 2, hooks=dict.fromkeys(range(2), (KEEP,)))
    assert consumed(tmp_path / "run") == all_ids(LENGTHS)
    (tmp_path / "undisturbed").mkdir()
    for log in (tmp_path / "run").glob("arrivals-*.log"):
        shutil.copy(log, tmp_path / "undisturbed" / log.name)
    finish(tmp_path, 2, run_dir="undisturbed")
    assert left(tmp_path / "undisturbed") == left(tmp_path / "run")


def test_logs_are_empty_where_checkpoints_have_passed_them(tmp_path):
    write(tmp_path, batch={"size": 8, "max_wait": None}, checkpoint={"every_samples": 8})
    finish(tmp_path, 2)
    entries = {path.name: len(path.read_bytes().splitlines()) for path in tmp_path.glob("run/arrivals-*.log")}
    assert set(entries) == {"arrivals-0.log", "arrivals-1.log", "arrivals-steps.log"}
    assert max(entries.values()) < 12  # of at least 12 batches


def test_a_rank_without_its_log_is_noticed(tmp_path):
    write(tmp_path, checkpoint={"every_samples": 1000})  # so the batches since the first one are needed
    run(tmp_path, 2, hooks={0: (die(9),), 1: (die(9),)})
    (tmp_path / "run" / "arrivals-1.log").unlink()
    for done in run(tmp_path, 2):
        assert done.code == 4
        assert "rank 1 lacks its log" in done.err


@pytest.mark.parametrize("later", [1, 3])
def test_another_number_of_ranks_continues_from_the_checkpoint(tmp_path, later):
    write(tmp_path, checkpoint={"every_samples": 12})
    run(tmp_path, 2, hooks={0: (die(9),), 1: (die(9),)})
    if later == 1:
        done = streamcl(*RUN, "run_dir=run", folder=tmp_path)
        assert done.code == 0, done.err
    else:
        finish(tmp_path, later)
    assert consumed(tmp_path / "run") == all_ids(LENGTHS)
    names = {path.name for path in tmp_path.glob("run/arrivals*.log")}
    if later == 1:
        assert names == {"arrivals.log"}
    else:  # a rank whose feed had ended before the checkpoint cut no batch, so it has no log
        assert {"arrivals-steps.log"} < names <= {f"arrivals-{k}.log" for k in (0, 1, 2, "steps")}


@pytest.mark.slow
def test_ranks_continue_what_one_process_began(tmp_path):
    write(tmp_path, checkpoint={"every_samples": 16})
    kill = ("fault_runs:kill_at", {"note": "calls", "point": "RidgeLearner.learn", "times": 6})
    assert streamcl(*RUN, "run_dir=run", folder=tmp_path, hooks=(kill,)).code == -signal.SIGKILL
    finish(tmp_path, 2)
    assert consumed(tmp_path / "run") == all_ids(LENGTHS)
    assert not (tmp_path / "run" / "arrivals.log").exists()


@pytest.mark.parametrize(("before", "later"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_batch_that_was_split_by_a_limit_is_finished_by_as_many_processes(tmp_path, before, later):
    write(tmp_path, batch={"size": 16, "max_wait": None})
    ranks = {1: lambda *settings: [one_process(tmp_path, *settings)], 2: lambda *s: run(tmp_path, 2, *s)}
    assert {done.code for done in ranks[before]("max_samples=41")} == {0}
    for done in ranks[later]():
        assert done.code == 3
        assert f"within a batch of {before} processes" in done.err
    assert {done.code for done in ranks[before]()} == {0}
    assert consumed(tmp_path / "run") == all_ids(LENGTHS)


def one_process(folder: Path, *settings: str) -> Any:
    overrides = [part for each in settings for part in ("--set", each)]
    return streamcl(*RUN, "run_dir=run", *overrides, folder=folder)


def test_a_live_source_that_cannot_be_divided_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    write(tmp_path, source={"name": "folder", "args": {"root": "images"}})
    for done in run(tmp_path, 2):
        assert done.code == 2
        assert "cannot be divided among ranks" in done.err


@pytest.mark.parametrize(
    "setting", ["distributed.data=replicated", "batch.predict_at=arrival", "overload.name=predict_only"]
)
def test_options_for_one_process_are_refused(tmp_path, setting):
    write(tmp_path)
    assert [done.code for done in run(tmp_path, 2, setting)] == [2, 2]
