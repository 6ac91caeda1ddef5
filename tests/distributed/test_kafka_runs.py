"""Runs over Kafka through the command line, killed on the way: librdkafka's mock cluster in this process."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fault_runs import left, lines, newest_state, start, stop, streamcl
from kafka_brokers import MockCluster, record_id, request
from rank_runs import streamcl_ranks, write_config

pytestmark = pytest.mark.long

RUN = ("run", "stream.yaml", "--set")
COUNT = 60
LOST = 7  # of a rank that notices the other's death before it comes to its own
STEPS = (  # from a message's arrival to the commit of its offset; killed at the nth call of each
    *(("LiveSource._hand_out", 2), ("KafkaReader.replay", 1), ("JsonlSink.flush", 2)),
    *(("Checkpoints.save", 2), ("KafkaReader.acknowledge", 1), ("ArrivalLog.drop_before", 1)),
)
MORE_STEPS = (
    *(("KafkaReader.open", 1), ("StreamProcessor.begin", 1), ("KafkaReader.poll", 2)),
    *(("KafkaReader.advance", 2), ("ArrivalLog.append", 1), ("LiveSource.load_state_dict", 1)),
    *(("LiveSource._pass_on", 1), ("Checkpoints._fill", 1), ("StreamProcessor.finish", 1)),
)


@pytest.fixture
def cluster():
    return MockCluster()


def write(
    folder: Path, cluster: MockCluster, *, count: int = COUNT, max_wait: float = 5.0, **args: Any
) -> None:
    source = {"name": "kafka", "args": {"brokers": cluster.address, "topic": "t", **args}}
    write_config(
        folder,
        source=source,
        learner="ridge",
        batch={"size": 8, "max_wait": max_wait},
        max_samples=count,
        checkpoint={"every_samples": 8, "delivery": "exactly_once"},
    )


def consumed(run: Path) -> list[str]:
    return sorted(each["id"] for each in lines(run, "predictions"))


def write_whole_batches(folder: Path, cluster: MockCluster, **args: Any) -> None:
    """A run whose batches are all full, so that no clock has a part in how they are cut."""
    cluster.send_records("t", 64)
    write(folder, cluster, count=64, max_wait=600.0, partitions=[0], **args)


def run_undisturbed(folder: Path) -> None:
    done = streamcl(*RUN, "run_dir=undisturbed", folder=folder)
    assert done.code == 0, done.err


def run_killed(folder: Path, **kill: Any) -> int | None:
    """One process of a run that is killed again and again; an ended one is compared, and another begins."""
    hook = ("fault_runs:kill_at", {"note": str(folder / "calls"), **kill})
    code = streamcl(*RUN, "run_dir=killed", folder=folder, hooks=(hook,) if kill else ()).code
    if code == 0:
        assert left(folder / "killed") == left(folder / "undisturbed")
        shutil.rmtree(folder / "killed")
    return code


@pytest.mark.parametrize("steps", [STEPS, pytest.param(MORE_STEPS, marks=pytest.mark.slow)])
def test_killed_at_every_step_between_arrival_and_commit(tmp_path, cluster, steps):
    write_whole_batches(tmp_path, cluster, group="mine")
    run_undisturbed(tmp_path)
    for point, times in steps:
        code = run_killed(tmp_path, point=point, times=times)
        if code == 0:  # it was too far on to come by that point
            code = run_killed(tmp_path, point=point, times=times)
        assert code == -signal.SIGKILL, point
    assert run_killed(tmp_path) == 0


@pytest.mark.slow
def test_killed_at_random_calls(tmp_path, cluster):
    write_whole_batches(tmp_path, cluster)
    run_undisturbed(tmp_path)
    rng = random.Random(0)
    codes = [run_killed(tmp_path, number=rng.randint(1, 120)) for _ in range(60)]
    assert run_killed(tmp_path) == 0
    assert codes.count(-signal.SIGKILL) > 30
    assert set(codes) <= {0, -signal.SIGKILL}


@pytest.mark.parametrize("later", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_ranks_learn_each_message_once(tmp_path, cluster, later):
    cluster.send_records("t", COUNT, partitions=3)
    cluster.send("asks", request(label="owl", key="first"))  # none comes, so it erases nothing at any time
    write(tmp_path, cluster, requests="asks")
    kill = {rank: (("rank_runs:die_at", {"batch": 6}),) for rank in range(2)}
    done = streamcl_ranks(2, *RUN, "run_dir=run", folder=tmp_path, hooks=kill)
    codes = {each.code for each in done}
    assert -signal.SIGKILL in codes <= {-signal.SIGKILL, LOST}
    assert newest_state(tmp_path / "run")["progress"]["offset"] < COUNT
    done = streamcl_ranks(later, *RUN, "run_dir=run", folder=tmp_path)
    assert [each.code for each in done] == [0] * later, [each.err for each in done]
    assert consumed(tmp_path / "run") == [record_id(number) for number in range(COUNT)]
    assert len(list((tmp_path / "run" / "receipts").glob("*.json"))) == 1


@pytest.mark.slow
def test_offsets_that_are_gone_end_the_run_with_their_names(tmp_path, cluster):
    cluster.send_records("t", 24)
    write(tmp_path, cluster)
    running = start(*RUN, "run_dir=run", "--set", "checkpoint.every_seconds=0.5", folder=tmp_path)
    while not (tmp_path / "run" / "predictions.jsonl").exists() or len(consumed(tmp_path / "run")) < 24:
        time.sleep(0.2)
    assert stop(running).code == 143
    cluster.fill("t")
    done = streamcl(*RUN, "run_dir=run", folder=tmp_path)
    assert done.code == 3
    assert "t/0: offsets 24 to" in done.err


def test_ranks_fetch_what_is_to_be_forgotten_from_the_topic(tmp_path, cluster):
    cluster.send_records("t", COUNT, partitions=3)
    write(tmp_path, cluster)
    asked = {"requests": [{"offset": 56, "ids": [record_id(3), record_id(4)]}]}
    done = streamcl_ranks(2, *RUN, "run_dir=run", "--set", f"forgetting={json.dumps(asked)}", folder=tmp_path)
    assert [each.code for each in done] == [0] * 2, [each.err for each in done]
    (path,) = (tmp_path / "run" / "receipts").glob("*.json")
    receipt = json.loads(path.read_text())
    assert (receipt["outcome"], receipt["guarantee"], receipt["reason"]) == ("done", "exact", None)
