"""Messages in a Kafka topic for the tests: sent to librdkafka's mock cluster, or to a real one."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fault_sources import Pictures
from PIL import Image

pytest.importorskip("confluent_kafka", reason="the package confluent-kafka is not installed")
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

PARTITIONS = 4  # of a topic that the mock cluster makes by itself
QUIET = {"log_level": 0}


class Cluster:
    """Sends messages to a cluster; `address` is that of its brokers."""

    address: str
    producer: Producer

    def queue(self, topic: str, value: bytes | None, **options: Any) -> None:
        """Send a message with the next ones, which are one fetch then; `send` waits for it."""
        self.producer.produce(topic, value, **{"partition": 0, **options})

    def send(self, topic: str, value: bytes | None, **options: Any) -> None:
        """Send a message; `options` are those of Producer.produce."""
        self.queue(topic, value, **options)
        assert self.producer.flush(10) == 0

    def send_record(self, topic: str, number: int, **options: Any) -> None:
        """Send picture `number` with its label and id in headers."""
        self.send(topic, png(number), headers=names_of(number), **options)

    def send_records(self, topic: str, count: int, partitions: int = 1) -> None:
        """Send the first `count` pictures, spread over the first partitions."""
        for number in range(count):
            self.queue(topic, png(number), headers=names_of(number), partition=number % partitions)
        assert self.producer.flush(10) == 0


class MockCluster(Cluster):
    """One broker in this process, in memory; other processes reach it at `address`.

    It keeps the last 5 MB of a partition, and shows messages of an aborted transaction.
    """

    def __init__(self) -> None:
        self.producer = Producer({"test.mock.num.brokers": 1, **QUIET})
        brokers = self.producer.list_topics(timeout=10).brokers.values()
        self.address = ",".join(f"{each.host}:{each.port}" for each in brokers)

    def fill(self, topic: str, partition: int = 0, messages: int = 24) -> None:
        """Send so much that the oldest messages of the partition are removed."""
        for _ in range(messages):
            self.send(topic, bytes(500_000), partition=partition)


class MockProcess(Cluster):
    """A mock cluster in a process of its own, which can be stopped for a while."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SERVE, str(Path(__file__).parent)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        self.producer = Producer({"bootstrap.servers": self.address, **QUIET})

    def send_signal(self, which: int) -> None:
        """Send a signal to the process: SIGSTOP is a broker that hangs, SIGCONT one that is back."""
        self.process.send_signal(which)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from kafka_brokers import MockCluster
cluster = MockCluster()
print(cluster.address, flush=True)
sys.stdin.read()
"""


class RealCluster(Cluster):
    """A cluster that others run. Topics are made by `topic`, and removed by `close`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.settings = {"bootstrap.servers": address, **QUIET}
        self.producer, self._admin = Producer(self.settings), AdminClient(self.settings)
        self._topics: list[str] = []

    def topic(self, partitions: int = 1, **config: str) -> str:
        """Make a topic and return its name."""
        name = f"streamcl-test-{uuid.uuid4().hex[:12]}"
        self._wait(self._admin.create_topics([NewTopic(name, partitions, 1, config=config)]))
        self._topics.append(name)
        return name

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions."""
        self._wait(self._admin.create_partitions([NewPartitions(topic, partitions)]))

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        """Remove the messages of a partition before an offset, as its retention does."""
        self._wait(self._admin.delete_records([TopicPartition(topic, partition, offset)]))

    def close(self) -> None:
        if self._topics:
            self._wait(self._admin.delete_topics(self._topics))

    def _wait(self, futures: Mapping[Any, Any]) -> None:
        for each in futures.values():
            each.result(30)


def names_of(number: int) -> dict[str, str]:
    """The headers of picture `number`."""
    return {"label": Pictures()[number]["label"], "id": record_id(number)}


def record_id(number: int) -> str:
    return f"r{number:04}"


def png(number: int) -> bytes:
    """A picture that depends on its number alone."""
    content = io.BytesIO()
    Image.fromarray(Pictures()[number]["image"]).save(content, "PNG")
    return content.getvalue()


def envelope(number: int, **fields: Any) -> bytes:
    """A JSON envelope of picture `number`."""
    image = base64.b64encode(png(number)).decode()
    return json.dumps({"image": image, "label": Pictures()[number]["label"], **fields}).encode()


def request(**fields: Any) -> bytes:
    """The value of a request to forget."""
    body: Mapping[str, Any] = fields
    return json.dumps(body).encode()
