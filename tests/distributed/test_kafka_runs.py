"""Runs over Kafka through the command line, killed on the way: librdkafka's mock cluster in this process."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fault_runs import left, lines, newest_state, start, streamcl
from kafka_brokers import MockCluster, record_id, request
from rank_runs import streamcl_ranks, write_config

RUN = ("run", "stream.yaml", "--set")
COUNT = 60


@pytest.fixture
def cluster():
    return MockCluster()


def write(folder: Path, cluster: MockCluster, **args: Any) -> None:
    source = {"name": "kafka", "args": {"brokers": cluster.address, "topic": "t", **args}}
    write_config(
        folder,
        source=source,
        learner="ridge",
        batch={"size": 8, "max_wait": 5.0},
        max_samples=COUNT,
        checkpoint={"every_samples": 16, "delivery": "exactly_once"},
    )


def consumed(run: Path) -> list[str]:
    return sorted(each["id"] for each in lines(run, "predictions"))


@pytest.mark.parametrize("at", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, cluster, at):
    cluster.send_records("t", COUNT)
    write(tmp_path, cluster, partitions=[0])
    done = streamcl(*RUN, "run_dir=undisturbed", folder=tmp_path)
    assert done.code == 0, done.err
    kill = ("fault_runs:kill_at", {"note": "calls", "point": "RidgeLearner.learn", "times": at})
    assert streamcl(*RUN, "run_dir=killed", folder=tmp_path, hooks=(kill,)).code == -signal.SIGKILL
    done = streamcl(*RUN, "run_dir=killed", folder=tmp_path)
    assert done.code == 0, done.err
    assert left(tmp_path / "killed") == left(tmp_path / "undisturbed")


@pytest.mark.parametrize("later", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_ranks_learn_each_message_once(tmp_path, cluster, later):
    cluster.send_records("t", COUNT, partitions=3)
    cluster.send("asks", request(label="ant", key="first"))
    write(tmp_path, cluster, requests="asks")
    kill = {rank: (("rank_runs:die_at", {"batch": 6}),) for rank in range(2)}
    done = streamcl_ranks(2, *RUN, "run_dir=run", folder=tmp_path, hooks=kill)
    assert [each.code for each in done] == [-signal.SIGKILL] * 2
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
    running.send(signal.SIGTERM)
    assert running.wait().code == 143
    cluster.fill("t")
    done = streamcl(*RUN, "run_dir=run", folder=tmp_path)
    assert done.code == 3
    assert "t/0: offsets 24 to" in done.err
