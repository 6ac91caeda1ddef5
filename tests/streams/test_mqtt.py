"""MQTT through a spool: each message once, across kills of either side; a real mosquitto."""

from __future__ import annotations

import base64
import json
import random
import signal
import time
from contextlib import contextmanager

import pytest
from fault_runs import lines, start, stop, until, write_config
from live_configs import ids_learned
from log_messages import logged
from spool_sources import record as pictured
from tiny_runs import configuration

from streamcl.errors import ConfigError, RefusedRequest, SourceError
from streamcl.events import ForgetRequest, RejectedRecord
from streamcl.factory.source import build_source
from streamcl.requests.label import Label
from streamcl.runs.open import open_run
from streamcl.testing import each_exactly_once
from streams.live.brokers.mqtt import MqttProducer
from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_reader import SpoolReader

pytestmark = pytest.mark.long


def messages(numbers, topic="cam/1", **names):
    return [(topic, b"image %d" % k, {"label": "ab"[k % 2], "id": f"m{k}", **names}) for k in numbers]


class Reader(SpoolReader):
    """A reader whose producer has begun. early: what has come by then."""

    early = ()


@contextmanager
def receiving(server, folder, producer=MqttProducer, retention=None, **options):
    made = producer(options.pop("topics", "cam/#"), "streamcl-test", "127.0.0.1", server.port, **options)
    reader = Reader(Spool(folder / "spool", retention or Retention(reserve=0)), made)
    reader.open(None)
    reader.early = reader.poll(0.0)
    try:
        yield reader
    finally:
        reader.close()


def received(reader, count, seconds=120.0):
    """The next `count` records, and those that come right after."""
    found, deadline = list(reader.early), time.monotonic() + seconds
    reader.early = ()
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} came"
        found += reader.poll(0.1)
    return found + list(reader.poll(0.3))


def ids(arrivals):
    return [each.value["id"] for each in arrivals]


def subscribed(server, folder, **options):
    """Let the broker begin a session, so that what is published from now on is kept for it."""
    with receiving(server, folder, **options) as reader:
        eventually(lambda: reader.writer.note == b"session")


def eventually(true, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def test_images_come_with_their_properties_and_envelopes_with_their_fields(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    mosquitto.publish(messages([3], subject="p", domain="door", privacy="user"))
    with receiving(mosquitto, tmp_path) as reader:
        (found,) = received(reader, 1)
    names = {"label": "b", "id": "m3", "subject": "p", "domain": "door", "privacy": "user"}
    assert found.value == {"image": b"image 3", **names}
    envelope = {"image": base64.b64encode(b"other").decode(), "label": "a", "id": "e"}
    subscribed(mosquitto, tmp_path / "2", format="envelope")
    mosquitto.publish([("cam/2", json.dumps(envelope).encode(), {})])
    with receiving(mosquitto, tmp_path / "2", format="envelope") as reader:
        (found,) = received(reader, 1)
    assert (found.value["image"], found.value["label"], found.value["id"]) == (b"other", "a", "e")


def test_what_is_published_while_no_run_reads_comes_later_in_order(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    for part in range(3):
        mosquitto.publish(messages(range(100 * part, 100 * part + 100)))
        with receiving(mosquitto, tmp_path) as reader:
            found = received(reader, 100 * part + 100)
    assert ids(found) == [f"m{k}" for k in range(300)]


def test_a_message_may_be_the_label_of_an_earlier_record(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    label = ("cam/1", b"", {"label_of": "m0", "label": "cat"})
    mosquitto.publish([*messages([0]), label, ("cam/1", b"", {"label_of": "m0"}), *messages([1])])
    with receiving(mosquitto, tmp_path) as reader:
        first, second, blank, last = (each.value for each in received(reader, 4))
    assert (first["id"], second, last["id"]) == ("m0", Label("m0", "cat"), "m1")
    assert (blank.id, "label" in blank.fault) == ("m0", True)
    subscribed(mosquitto, tmp_path / "2", format="envelope")
    mosquitto.publish([("cam/2", b'{"label_of": 5, "label": 3}', {}), ("cam/2", b'{"label_of": {}}', {})])
    with receiving(mosquitto, tmp_path / "2", format="envelope") as reader:
        label, bad = (each.value for each in received(reader, 2))
    assert label == Label("5", "3")
    assert bad.fault


def test_requests_come_from_a_topic_of_their_own(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path, requests="forget")
    mosquitto.publish([("forget", b'{"subject": "p7"}', {}), ("forget", b"no JSON", {})])
    with receiving(mosquitto, tmp_path, requests="forget") as reader:
        request, refused = (each.value for each in received(reader, 2))
    assert isinstance(request, ForgetRequest)
    assert (request.subject, len(request.key)) == ("p7", 32)
    assert isinstance(refused, RefusedRequest)


class NeverAcknowledges(MqttProducer):
    """Dies, as it were, between the spool's sync and the acknowledgement."""

    def acknowledge(self, session, messages):
        pass


@pytest.mark.parametrize("identity", ["id", "content"])
def test_a_message_that_comes_again_for_want_of_an_acknowledgement_is_one_record(
    mosquitto, tmp_path, identity
):
    names = {} if identity == "id" else {"id": ""}
    subscribed(mosquitto, tmp_path, identity=identity)
    mosquitto.publish(messages(range(20), **names))
    with receiving(mosquitto, tmp_path, NeverAcknowledges, identity=identity) as reader:
        first = received(reader, 20)
    with receiving(mosquitto, tmp_path, identity=identity) as reader:
        eventually(lambda: reader.writer.repetitions == 20)
        assert ids(received(reader, 20)) == ids(first)
    assert len(set(ids(first))) == 20


def test_without_identity_it_would_be_learned_twice(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    mosquitto.publish(messages(range(5), id=""))
    with receiving(mosquitto, tmp_path, NeverAcknowledges, identity="none") as reader:
        received(reader, 5)
    with receiving(mosquitto, tmp_path, identity="none") as reader:
        assert len(received(reader, 10)) == 10


def test_a_message_without_an_id_is_rejected_where_ids_are_relied_upon(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    mosquitto.publish(messages([0], id=""))
    with receiving(mosquitto, tmp_path) as reader:
        (found,) = received(reader, 1)
    assert isinstance(found.value, RejectedRecord)
    assert "identity: content" in found.value.reason


def test_nothing_is_acknowledged_before_it_is_in_the_spool(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    mosquitto.publish(messages(range(200)))
    full = Retention(reserve=2**60)
    with logged() as said, receiving(mosquitto, tmp_path, retention=full, inflight=5) as reader:
        eventually(lambda: any("has no room" in each for each in said))
        time.sleep(0.5)
        assert reader.retained.log.end == 0
    with receiving(mosquitto, tmp_path) as reader:
        each_exactly_once(ids(received(reader, 200)), [f"m{k}" for k in range(200)])


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_broker_goes_and_comes_back(mosquitto, tmp_path, how):
    with logged() as said, receiving(mosquitto, tmp_path) as reader:
        eventually(lambda: reader.writer.note == b"session")
        mosquitto.publish(messages(range(10)))
        found = received(reader, 10)
        getattr(mosquitto, how)()
        eventually(lambda: any("the broker is away" in each for each in said))
        mosquitto.start()
        eventually(lambda: sum("connected to" in each for each in said) >= 2)
        mosquitto.publish(messages(range(10, 20)))
        found += received(reader, 10)
    assert ids(found) == [f"m{k}" for k in range(20)]


def test_a_broker_that_has_lost_the_session_is_named(mosquitto, tmp_path):
    subscribed(mosquitto, tmp_path)
    mosquitto.kill()
    for path in mosquitto.folder.glob("*.db*"):
        path.unlink()
    mosquitto.start()
    with logged() as said, receiving(mosquitto, tmp_path):
        eventually(lambda: any("has lost the session" in each for each in said))


def test_a_second_client_of_the_same_name_is_named(mosquitto, tmp_path):
    with logged() as said, receiving(mosquitto, tmp_path / "a"), receiving(mosquitto, tmp_path / "b"):
        eventually(
            lambda: any("does another client have the client_id streamcl-test" in each for each in said)
        )


def test_a_broker_that_refuses_is_an_error(mosquitto, tmp_path):
    mosquitto.stop()
    mosquitto.write_settings("allow_anonymous false")
    mosquitto.start()
    with receiving(mosquitto, tmp_path) as reader, pytest.raises(SourceError, match="Not authorized"):
        received(reader, 1)


def test_a_publisher_with_qos_0_is_named(mosquitto, tmp_path):
    with logged() as said, receiving(mosquitto, tmp_path) as reader:
        eventually(lambda: reader.writer.note == b"session")
        mosquitto.publish(messages([0]), qos=0)
        received(reader, 1)
    assert any("QoS 0" in each for each in said)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "exactly_once"),
        ({"identity": "content"}, "exactly_once"),
        ({"identity": "none"}, "at_least_once"),
        ({"qos": 0}, "at_most_once"),
        ({"clean_start": True}, "at_most_once"),
    ],
)
def test_what_cannot_be_exactly_once_is_refused_where_it_is_asked_for(tmp_path, changes, kind):
    pytest.importorskip("paho.mqtt.client", reason='pip install "streamcl[mqtt]"')
    source = {"name": "mqtt", "args": {"topics": "cam/#", "client_id": "c", **changes}}
    config = configuration(tmp_path, source=source, checkpoint={"delivery": "exactly_once"})
    made = build_source(config, folder=tmp_path)
    assert made.guarantee.kind == kind
    assert made.replayable
    if kind != "exactly_once":
        with pytest.raises(ConfigError, match="delivers at"):
            open_run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qos": 2}, "qos: 2"),
        ({"format": "raw"}, "format: 'raw'"),
        ({"identity": "topic"}, "identity: 'topic'"),
        ({"inflight": 0}, "inflight: 0"),
        ({"requests": "cam/#"}, "need their own"),
    ],
)
def test_a_wrong_argument_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MqttProducer("cam/#", "c", **changes)


def test_the_shipped_configuration_learns_what_was_published(mosquitto, tmp_path):
    topics = "cameras/+/image"
    first = MqttProducer(topics, "streamcl-live", "127.0.0.1", mosquitto.port, requests="cameras/forget")
    reader = SpoolReader(Spool(tmp_path / "spool", Retention(reserve=0)), first)
    reader.open(None)
    reader.poll(0.0)
    eventually(lambda: reader.writer.note == b"session")
    reader.close()
    sent = [pictured(number) for number in range(8)]
    mosquitto.publish(
        ("cameras/1/image", each["image"], {"id": each["id"], "label": each["label"]}) for each in sent
    )
    address = ('source.args.host="127.0.0.1"', f"source.args.port={mosquitto.port}")
    found = ids_learned("live_mqtt", tmp_path / "run", *address)
    assert found == [each["id"] for each in sent]


@pytest.mark.faults
@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_anywhere_learns_every_message_once(mosquitto, tmp_path, kills):
    write_config(
        tmp_path,
        learner="ridge",
        source={
            "name": "mqtt",
            "args": {"topics": "cam/#", "client_id": "run", "host": "127.0.0.1", "port": mosquitto.port},
        },
        batch={"size": 8, "max_wait": "100ms"},
        checkpoint={"every_samples": 16, "every_seconds": 0.5, "delivery": "exactly_once"},
        flush="100ms",
        shift="none",
        run_dir="run",
    )

    def predicted():
        return [each["id"] for each in lines(tmp_path / "run", "predictions")]

    first = start("run", "stream.yaml", "--quiet", folder=tmp_path)
    spool = tmp_path / "run" / "spool"
    until(lambda: any(b"session" in path.read_bytes() for path in spool.glob("*.segment")), process=first)
    first.send(signal.SIGKILL)
    first.wait()
    rng, sent = random.Random(0), []
    for _ in range(kills):
        numbers = range(len(sent), len(sent) + 20)
        records = [pictured(number) for number in numbers]
        mosquitto.publish(
            ("cam/1", each["image"], {"id": each["id"], "label": each["label"]}) for each in records
        )
        sent += [each["id"] for each in records]
        hook = ("fault_runs:kill_at", {"note": str(tmp_path / "note"), "number": rng.randint(10, 150)})
        process = start("run", "stream.yaml", "--quiet", folder=tmp_path, hooks=(hook,))
        process.wait(rng.uniform(0.5, 3.0))  # and is killed then, where it was not before
    last = start("run", "stream.yaml", "--quiet", folder=tmp_path)
    until(lambda: len(predicted()) >= len(sent), process=last)
    done = stop(last)  # the runs before may have learned all, so it may just have begun
    assert done.code == 143, done
    each_exactly_once(predicted(), sent)
