"""The Kafka source against a real cluster, which `make test-kafka BROKERS=host:port` names.

It makes topics named streamcl-test-... and removes them; the cluster's user must be allowed to.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from itertools import islice

import pytest
from fault_runs import left, streamcl, write_config
from kafka_brokers import RealCluster, png, record_id, request
from live_readers import Clock

from streamcl.errors import BadRecord, SourceError
from streamcl.events import Batch, ForgetRequest
from streamcl.testing import check_live_reader
from streamcl.testing.source_checks import fingerprints
from streams.live.arrival_log import ArrivalLog
from streams.live.brokers.kafka import REFRESH, KafkaReader
from streams.live.cutting import Cutting
from streams.live.source import LiveSource

BROKERS = os.environ.get("BROKERS")
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(not BROKERS, reason="BROKERS names no Kafka cluster (make test-kafka BROKERS=...)"),
]


@pytest.fixture(scope="module")
def cluster():
    made = RealCluster(str(BROKERS))
    yield made
    made.close()


def read(made, count, seconds=60.0):
    """Return the next `count` arrivals, and pass them."""
    found, until = [], time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < until, f"only {len(found)} of {count} came"
        found += made.poll(0.5)
    made.advance([each.key for each in found])
    return found


def opened(cluster, topic, position=None, **options):
    made = KafkaReader(cluster.address, topic, **options)
    made.open(position)
    return made


def transaction(cluster, topic, values, *, commit):
    from confluent_kafka import Producer

    producer = Producer({**cluster.settings, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)  # so that an aborted transaction is in the topic too
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def test_it_keeps_the_promises_of_a_reader(cluster):
    topic = cluster.topic()
    cluster.send_records(topic, 7)
    check_live_reader(lambda: KafkaReader(cluster.address, topic, group=topic), timeout=1.0)


def test_each_message_comes_once_across_restarts(cluster):
    topic, position, seen = cluster.topic(3), None, []
    cluster.send_records(topic, 60, partitions=3)
    while len(seen) < 60:
        made = opened(cluster, topic, position)
        found = made.poll(10.0)[:13]
        made.advance([each.key for each in found])
        seen += [each.value["id"] for each in found]
        position = made.position()
        made.close()
    assert sorted(seen) == [record_id(number) for number in range(60)]


def test_merged_partitions_come_again_in_the_same_order(cluster, tmp_path):
    topic, path = cluster.topic(3), tmp_path / "arrivals.log"
    cluster.send_records(topic, 40, partitions=3)

    def source():
        reader = KafkaReader(cluster.address, topic)
        return LiveSource(reader, cutting=Cutting(size=4, max_wait=None), log=ArrivalLog(path))

    def batches(live, count):
        return list(islice((event for event in live if isinstance(event, Batch)), count))

    first = source()
    before = batches(first, 3)
    state = first.state_dict()
    lost = batches(first, 3)
    first.close()
    second = source()
    second.load_state_dict(state)
    again = batches(second, 7)
    second.close()
    assert fingerprints(again[:3]) == fingerprints(lost)
    names = [sample.id for batch in before + again for sample in batch.samples]
    assert sorted(names) == [record_id(number) for number in range(40)]


def test_messages_of_an_aborted_transaction_are_never_learned(cluster):
    topic = cluster.topic()
    transaction(cluster, topic, [png(0), png(1)], commit=False)
    transaction(cluster, topic, [png(2)], commit=True)
    transaction(cluster, topic, [png(3)], commit=False)
    cluster.send_record(topic, 4)
    made = opened(cluster, topic)
    found = read(made, 2)
    assert [each.value["image"] for each in found] == [png(2), png(4)]
    assert made.poll(2.0) == []
    position = made.position()
    made.close()
    again = opened(cluster, topic, {topic: {"0": found[0].key[2] + 1}})
    assert [each.value["image"] for each in again.replay([found[1].key])] == [png(4)]
    again.close()
    last = opened(cluster, topic, position)
    assert last.poll(2.0) == []
    last.close()


def test_removed_messages_are_a_gap_with_a_name(cluster):
    topic = cluster.topic()
    cluster.send_records(topic, 9)
    cluster.remove_before(topic, 0, 6)
    with pytest.raises(SourceError, match=f"{topic}/0: offsets 2 to 5 were removed"):
        opened(cluster, topic, {topic: {"0": 2}})
    skipping = opened(cluster, topic, {topic: {"0": 2}}, on_gap="skip")
    assert [each.key[2] for each in read(skipping, 3)] == [6, 7, 8]
    skipping.close()


def test_a_topic_that_grows_is_read_whole(cluster):
    topic, clock = cluster.topic(), Clock()
    cluster.send_record(topic, 0)
    made = opened(cluster, topic, clock=clock)
    read(made, 1)
    cluster.grow(topic, 3)
    time.sleep(2.0)  # the brokers take a moment to agree
    cluster.send_record(topic, 1, partition=2)
    clock.now += REFRESH
    assert [each.value["id"] for each in read(made, 1)] == [record_id(1)]
    made.close()


def test_a_rebalance_of_its_group_takes_nothing_away(cluster):
    """Another consumer joins and leaves the group under which offsets are committed."""
    from confluent_kafka import Consumer

    topic = cluster.topic(2)
    cluster.send_records(topic, 20, partitions=2)
    made = opened(cluster, topic, group=topic)
    read(made, 20)
    made.acknowledge(made.position())
    other = Consumer({**cluster.settings, "group.id": topic, "auto.offset.reset": "earliest"})
    other.subscribe([topic])
    other.poll(10.0)
    cluster.send_records(topic, 10, partitions=2)
    found = read(made, 10)
    made.acknowledge(made.position())  # refused by the broker while the group has a member: it is a hint
    other.close()
    cluster.send_record(topic, 0)
    found += read(made, 1)
    made.close()
    assert len({tuple(each.key) for each in found}) == 11


def test_tombstones_and_requests(cluster):
    topic, requests = cluster.topic(**{"cleanup.policy": "compact"}), cluster.topic()
    cluster.send(topic, png(0), key=b"ann", headers={"label": "ant"})
    cluster.send(topic, None, key=b"ann")
    cluster.send(topic, b"no image", key=b"bob")
    cluster.send(requests, request(label="ant", key="k"))
    made = opened(cluster, topic, key="subject", requests=requests)
    first, record, tombstone, other = (each.value for each in read(made, 4))
    made.close()
    assert isinstance(first, ForgetRequest)
    assert record["subject"] == "ann"
    assert tombstone.subject == "ann"
    assert not isinstance(other, BadRecord)  # it is rejected when it is decoded


def test_large_messages(cluster):
    topic = cluster.topic()
    for number in range(12):
        cluster.send(topic, bytes([number]) * 900_000)
    made = opened(cluster, topic)
    assert [each.value["image"][0] for each in read(made, 12)] == list(range(12))
    made.close()


def test_a_killed_run_goes_on_as_if_nothing_had_been(cluster, tmp_path):
    topic = cluster.topic()
    cluster.send_records(topic, 48)
    write_config(
        tmp_path,
        source={"name": "kafka", "args": {"brokers": cluster.address, "topic": topic}},
        learner="ridge",
        batch={"size": 8, "max_wait": 5.0},
        max_samples=48,
        checkpoint={"every_samples": 16, "delivery": "exactly_once"},
    )
    command = ("run", "stream.yaml", "--set")
    assert streamcl(*command, "run_dir=undisturbed", folder=tmp_path).code == 0
    kill = ("fault_runs:kill_at", {"note": "calls", "point": "RidgeLearner.learn", "times": 5})
    killed = streamcl(*command, "run_dir=killed", folder=tmp_path, hooks=(kill,))
    assert killed.code == -signal.SIGKILL
    assert streamcl(*command, "run_dir=killed", folder=tmp_path).code == 0
    assert left(tmp_path / "killed") == left(tmp_path / "undisturbed")
