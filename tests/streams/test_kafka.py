"""The Kafka source against librdkafka's mock cluster: positions, gaps, replays, tombstones, requests."""

from __future__ import annotations

import signal
import sys
import time
from itertools import islice

import pytest
from kafka_brokers import PARTITIONS, MockCluster, MockProcess, envelope, png, record_id, request
from live_readers import Clock

from streamcl.errors import BadRecord, ConfigError, MissingExtra, RefusedRequest, SourceError
from streamcl.events import Batch, ForgetRequest
from streamcl.sources.live_reader import LiveReader
from streamcl.testing import check_live_reader
from streamcl.testing.source_checks import fingerprints
from streams.build import named_source
from streams.live.arrival_log import ArrivalLog
from streams.live.brokers.kafka import MESSAGES_AT_ONCE, REFRESH, KafkaReader
from streams.live.brokers.kafka_topic import MAX_BUFFERED
from streams.live.cutting import Cutting
from streams.live.source import LiveSource

pytestmark = pytest.mark.long


@pytest.fixture
def cluster():
    return MockCluster()


def reader(cluster, topic="t", position=None, **options):
    made = KafkaReader(cluster.address, topic, **options)
    made.open(position)
    return made


def read(made, count, seconds=120.0):
    """Return the next `count` arrivals."""
    found, until = [], time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < until, f"only {len(found)} of {count} came"
        found += made.poll(0.2)
    return found


def take(made, count):
    """Read and pass `count` arrivals; return their values."""
    found = read(made, count)
    made.advance([each.key for each in found])
    return [each.value for each in found]


def ids(values):
    return [value["id"] for value in values]


def live(made, *, size=4, log=None, wait=0.2):
    return LiveSource(made, cutting=Cutting(size=size, max_wait=wait), log=log)


def batches(source, count):
    events = (event for event in source if isinstance(event, Batch | ForgetRequest))
    return list(islice(events, count))


def test_a_message_is_an_image_with_headers(cluster):
    names = {
        "label": "ant",
        "id": "x",
        "subject": "ann",
        "domain": "field",
        "privacy": "user",
        "trace": b"\xff",
    }
    cluster.send("t", png(3), headers=names)
    made = reader(cluster)
    assert isinstance(made, LiveReader)
    (value,) = take(made, 1)
    assert value == {"image": png(3), **{name: text for name, text in names.items() if name != "trace"}}
    assert made.position() == {"t": {"0": 1, "1": 0, "2": 0, "3": 0}}
    made.close()


def test_a_message_is_an_envelope(cluster):
    cluster.send("t", envelope(3, id="x", subject="ann"))
    cluster.send("t", envelope(4))
    made = reader(cluster, format="envelope")
    first, second = take(made, 2)
    assert (first["image"], first["label"], first["id"], first["subject"]) == (png(3), "bee", "x", "ann")
    assert second["id"] == "t-0-1"
    made.close()


def test_it_keeps_the_promises_of_a_reader(cluster):
    cluster.send_records("t", 7)
    cluster.send("t", b"no image")
    cluster.send("asks", request(label="ant"))
    check_live_reader(lambda: KafkaReader(cluster.address, "t", partitions=[0]), timeout=0.05, count=8)
    options = {"partitions": [0], "requests": "asks", "group": "g"}
    check_live_reader(lambda: KafkaReader(cluster.address, "t", **options), timeout=0.05, count=9)


def test_poll_waits_no_longer_than_for_the_first_message_and_brings_few(cluster):
    cluster.send_records("t", 96)
    made = reader(cluster)
    sizes = []
    while sum(sizes) < 96:
        sizes.append(len(made.poll(0.5)))
    assert max(sizes) <= MESSAGES_AT_ONCE
    assert made.poll(0.2) == []
    made.close()


@pytest.mark.parametrize("taken", range(0, 13, 3))
def test_it_continues_at_a_position(cluster, taken):
    cluster.send_records("t", 12, partitions=3)
    first = reader(cluster)
    found = read(first, 12)
    first.advance([each.key for each in found[:taken]])
    before = ids(each.value for each in found[:taken])
    position = first.position()
    first.close()
    second = reader(cluster, position=position)
    after = ids(take(second, 12 - taken)) if taken < 12 else []
    assert second.poll(0.3) == []
    second.close()
    assert sorted(before + after) == [record_id(number) for number in range(12)]


def test_offsets_that_were_removed_before_they_were_read_are_named(cluster, caplog):
    cluster.send_record("t", 0)
    first = reader(cluster)
    take(first, 1)
    position = first.position()
    first.close()
    cluster.fill("t")
    with pytest.raises(
        SourceError, match=r"t/0: offsets 1 to \d+ were removed before they were read"
    ) as caught:
        reader(cluster, position=position)
    assert caught.value.exit_code == 3
    made = reader(cluster, position=position, on_gap="skip")
    assert made.guarantee.kind == "at_most_once"
    assert live(made).replayable  # it can be started again all the same
    assert take(made, 3)
    made.close()
    assert "were removed before they were read" in caplog.text


def test_a_gap_that_opens_while_it_reads_is_named_too(cluster):
    cluster.send_record("t", 0)
    made = reader(cluster, settings={"queued.max.messages.kbytes": 1, "fetch.message.max.bytes": 1000})
    take(made, 1)
    cluster.fill("t", messages=40)
    with pytest.raises(SourceError, match=r"t/0: offsets \d+ to \d+ were removed before"):
        read(made, 60)
    made.close()


def test_a_topic_that_was_made_anew_is_refused(cluster):
    cluster.send_record("t", 0)
    with pytest.raises(SourceError, match=r"t/0: it was read up to offset 7 and ends at 1 now"):
        reader(cluster, position={"t": {"0": 7}})


def test_what_was_merged_from_several_partitions_comes_again_in_the_same_order(cluster, tmp_path):
    cluster.send_records("t", 30, partitions=3)
    path = tmp_path / "arrivals.log"
    first = live(KafkaReader(cluster.address, "t"), log=ArrivalLog(path))
    before = batches(first, 3)
    state = first.state_dict()
    lost = batches(first, 3)
    first.close()
    second = live(KafkaReader(cluster.address, "t"), log=ArrivalLog(path))
    second.load_state_dict(state)
    again = batches(second, 5)
    second.close()
    assert fingerprints(again[:3]) == fingerprints(lost)
    names = [sample.id for batch in before + again for sample in batch.samples]
    assert sorted(names) == [record_id(number) for number in range(30)]


def test_a_replay_holds_back_what_other_partitions_send_and_loses_none_of_it(cluster):
    count = 3 * MAX_BUFFERED
    for number in range(count):
        cluster.queue("t", b"", headers={"id": str(number)}, partition=1)
    for _ in range(3):
        cluster.send("t", b"", partition=0)
    made = reader(cluster)
    keys = [["t", 0, 0], ["t", 1, 0], ["t", 0, 1]]
    again = made.replay(keys)
    assert [each.key for each in again] == keys
    made.advance(keys)
    left = [each.key for each in read(made, count)]
    assert made.poll(0.3) == []
    made.close()
    assert sorted(left) == [["t", 0, 2], *(["t", 1, offset] for offset in range(1, count))]


def test_a_message_that_is_gone_keeps_its_place(cluster):
    cluster.send_record("t", 0)
    cluster.send_record("t", 1)
    made = reader(cluster, position={"t": {"0": 1}})
    there, gone = made.replay([["t", 0, 1], ["t", 0, 2]])
    made.close()
    assert there.value["id"] == record_id(1)
    assert isinstance(gone.value, BadRecord)
    assert "no message at offset 2" in str(gone.value)


def test_a_message_that_cannot_be_read_is_rejected_and_keeps_its_offset(cluster):
    cluster.send_record("t", 0)
    cluster.send("t", b"no image", headers={"label": "ant"})
    cluster.send("t", png(1), headers={"label": b"\xff"})
    cluster.send("t", None)
    cluster.send_record("t", 2)
    source = live(KafkaReader(cluster.address, "t"), size=5, wait=5.0)
    (batch,) = batches(source, 1)
    position = source.state_dict()["reader"]
    source.close()
    assert [sample.id for sample in batch.samples] == [record_id(0), record_id(2)]
    assert [each.offset for each in batch.rejected] == [1, 2, 3]
    assert "no value" in batch.rejected[2].reason
    assert position["t"]["0"] == 5


@pytest.mark.parametrize(
    "value",
    [b"{", b"[]", b"\xff", b'{"label": "a"}', b'{"image": "/etc/hostname"}', b"[" * 100_000, b'{"image": 3}'],
)
def test_an_envelope_that_cannot_be_read_is_rejected(cluster, value):
    cluster.send("t", value)
    made = reader(cluster, format="envelope")
    (found,) = take(made, 1)
    made.close()
    assert isinstance(found, BadRecord)


def test_a_tombstone_is_a_request_to_forget_its_key(cluster):
    cluster.send("t", png(0), key=b"ann", headers={"label": "ant", "id": "x"})
    cluster.send("t", None, key=b"ann")
    cluster.send("t", png(1))
    by_id, by_subject = reader(cluster, key="id"), reader(cluster, key="subject")
    record, tombstone, keyless = take(by_id, 3)
    assert record["id"] == "ann"
    assert (tombstone.ids, tombstone.id) == (("ann",), "t-0-1")
    assert isinstance(keyless, BadRecord)
    record, tombstone, _ = take(by_subject, 3)
    assert (record["id"], record["subject"], tombstone.subject) == ("x", "ann", "ann")
    by_id.close()
    by_subject.close()


def test_requests_come_before_records(cluster):
    for number in range(3):
        cluster.send_record("t", number)
    cluster.send("asks", request(label="ant"))
    cluster.send("asks", request(subject="ann", key="k"), partition=2)
    made = reader(cluster, requests="asks")
    values = take(made, 5)
    assert {type(each) for each in values[:2]} == {ForgetRequest}
    assert {each.key for each in values[:2]} == {"asks-0-0", "k"}
    assert ids(values[2:]) == [record_id(number) for number in range(3)]
    cluster.send_record("t", 3)
    cluster.send("asks", request(label="bee"))
    assert {type(each) for each in take(made, 2)} == {ForgetRequest, dict}
    assert made.position()["asks"] == {"0": 2, "1": 0, "2": 1, "3": 0}
    made.close()


@pytest.mark.parametrize("value", [b"{", b"{}", b'{"offset": 9, "label": "a"}', b'{"lable": "a"}', None])
def test_a_request_that_cannot_be_read_is_refused(cluster, value):
    cluster.send("asks", value)
    cluster.send_record("t", 0)
    made = reader(cluster, requests="asks")
    refused, _ = take(made, 2)
    made.close()
    assert isinstance(refused, RefusedRequest)


def test_partitions_that_the_checkpoint_does_not_know_are_read_from_their_beginning(cluster, caplog):
    for partition in range(PARTITIONS):
        cluster.send_record("t", partition, partition=partition)
    made = reader(cluster, position={"t": {"0": 1, "1": 1, "2": 1}})
    assert ids(take(made, 1)) == [record_id(3)]
    made.close()
    assert "has grown: partition 3" in caplog.text
    with pytest.raises(SourceError, match="partition 3 that the checkpoint does not know"):
        reader(cluster, position={"t": {"0": 1, "1": 1, "2": 1}}, new_partitions="fail")
    with pytest.raises(SourceError, match="has lost partition 4"):
        reader(cluster, position={"t": {"4": 1}})
    cluster.fill("t", partition=3)
    with pytest.raises(SourceError, match="t/3: offsets 0 to"):
        reader(cluster, position={"t": {"0": 1, "1": 1, "2": 1}})


def test_partitions_that_a_topic_grows_by_are_found_while_it_runs(cluster, monkeypatch):
    from streams.live.brokers.kafka_topic import KafkaTopic

    for partition in range(PARTITIONS):
        cluster.send_record("t", partition, partition=partition)
    clock = Clock()
    everything = KafkaTopic.partitions
    with monkeypatch.context() as patch:  # the mock cluster cannot add a partition: it is hidden instead
        patch.setattr(KafkaTopic, "partitions", lambda topic: everything(topic)[:-1])
        made = reader(cluster, clock=clock)
        assert sorted(ids(take(made, 3))) == [record_id(number) for number in range(3)]
    assert made.poll(0.2) == []
    clock.now += REFRESH
    assert ids(take(made, 1)) == [record_id(3)]
    assert made.position()["t"] == {"0": 1, "1": 1, "2": 1, "3": 1}
    made.close()


def test_chosen_partitions(cluster):
    for partition in range(PARTITIONS):
        cluster.send_record("t", partition, partition=partition)
    made = reader(cluster, partitions=[1, 3])
    assert sorted(ids(take(made, 2))) == [record_id(1), record_id(3)]
    made.close()
    with pytest.raises(SourceError, match="no partition 9"):
        reader(cluster, partitions=[9])


def test_shards_share_the_partitions_and_their_positions_become_one(cluster):
    cluster.send_records("t", 8, partitions=PARTITIONS)
    cluster.send("asks", request(label="ant"))
    undivided = KafkaReader(cluster.address, "t", requests="asks")
    shards = [undivided.shard(rank, 2) for rank in range(2)]
    for each in shards:
        each.open(None)
    request_, *first = take(shards[0], 5)
    assert isinstance(request_, ForgetRequest)
    assert sorted(ids(first)) == [record_id(number) for number in (0, 2, 4, 6)]
    found = read(shards[1], 4)
    shards[1].advance([each.key for each in found[:3]])
    assert sorted(ids(each.value for each in found)) == [record_id(number) for number in (1, 3, 5, 7)]
    position = KafkaReader.merge([each.position() for each in shards])
    for each in shards:
        each.close()
    alone = reader(cluster, position=position, requests="asks")
    assert ids(take(alone, 1)) == ids([found[3].value])
    assert alone.poll(0.3) == []
    assert alone.lag() == 0
    alone.close()


def test_offsets_are_committed_once_a_checkpoint_has_passed_them(cluster):
    from confluent_kafka import Consumer, TopicPartition

    cluster.send_record("t", 0)
    made = reader(cluster, group="mine")
    take(made, 1)
    observer = Consumer({"bootstrap.servers": cluster.address, "group.id": "mine"})

    def committed():
        return observer.committed([TopicPartition("t", 0)], timeout=10)[0].offset

    assert committed() < 0
    made.acknowledge(made.position())
    made.close()
    assert committed() == 1
    observer.close()


def test_it_may_be_left_unread_for_longer_than_a_group_would_wait(cluster):
    cluster.send_record("t", 0)
    made = reader(cluster, settings={"max.poll.interval.ms": 300, "session.timeout.ms": 300})
    take(made, 1)
    time.sleep(1.0)
    cluster.send_record("t", 1)
    assert ids(take(made, 1)) == [record_id(1)]
    made.close()


def test_a_broker_that_hangs_is_waited_for():
    cluster = MockProcess()
    cluster.send_records("t", 8)
    made = reader(cluster, settings={"socket.timeout.ms": 500, "fetch.wait.max.ms": 100})
    assert ids(take(made, 8)) == [record_id(number) for number in range(8)]
    cluster.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        assert made.poll(0.2) == []
    assert made.lag() is None or made.lag() >= 0
    cluster.send_signal(signal.SIGCONT)
    cluster.send_record("t", 8)
    assert ids(take(made, 1)) == [record_id(8)]
    made.close()
    cluster.close()


def test_a_broker_that_is_away_is_named_once(caplog):
    cluster = MockProcess()
    cluster.send_records("t", 8)
    made = reader(cluster)
    take(made, 8)
    cluster.close()
    until = time.monotonic() + 120.0
    while "no broker answers" not in caplog.text:
        assert time.monotonic() < until
        made.poll(0.2)
    for _ in range(10):
        assert made.poll(0.2) == []
    made.close()
    assert len(caplog.records) == 1


@pytest.mark.slow
def test_a_rebalance_of_its_group_takes_nothing_away(cluster):
    from confluent_kafka import Consumer

    cluster.send_records("t", 20, partitions=2)
    made = reader(cluster, group="mine")
    assert len(take(made, 20)) == 20
    made.acknowledge(made.position())
    settings = {"bootstrap.servers": cluster.address, "group.id": "mine", "auto.offset.reset": "earliest"}
    other = Consumer(settings)
    other.subscribe(["t"])
    other.poll(10.0)
    cluster.send_records("t", 10, partitions=2)
    assert len(take(made, 10)) == 10
    made.acknowledge(made.position())  # the group has a member now, which may refuse it
    other.close()
    cluster.send_record("t", 0)
    assert len(take(made, 1)) == 1
    made.close()


def test_records_are_fetched_again_by_their_ids(cluster):
    cluster.send_records("t", 6, partitions=2)
    cluster.send("t", png(7))
    made = KafkaReader(cluster.address, "t")
    found = dict(made.fetch([record_id(4), "t-0-3", "no such id"]))
    assert {name: value["image"] for name, value in found.items()} == {record_id(4): png(4), "t-0-3": png(7)}


def test_all_records_with_an_id_are_fetched(cluster):
    for number in range(4):
        cluster.send("t", envelope(number, id="x" if number % 2 else f"r{number}"))
    found = list(KafkaReader(cluster.address, "t", format="envelope").fetch(["x"]))
    assert [(name, value["image"]) for name, value in found] == [("x", png(1)), ("x", png(3))]


def test_records_whose_ids_are_numbers_or_no_ids_at_all_do_not_hinder_fetching(cluster):
    for number, name in enumerate((7, {}, None, 2**70, "x")):
        cluster.send("t", envelope(number, id=name))
    cluster.send("t", b'{"label_of": "x", "label": "ant"}')
    found = dict(KafkaReader(cluster.address, "t", format="envelope").fetch(["7", "t-0-2", "x"]))
    assert {name: value["image"] for name, value in found.items()} == {
        "7": png(0),
        "t-0-2": png(2),
        "x": png(4),
    }


def test_no_broker_and_no_topic(cluster, monkeypatch):
    monkeypatch.setattr("streams.live.brokers.kafka_topic.BROKER_TIMEOUT", 0.5)
    with pytest.raises(SourceError, match=r"no broker answers: .*Connection refused"):
        KafkaReader("127.0.0.1:9", "t").open(None)
    with pytest.raises(SourceError, match="'nothing' cannot be read"):
        reader(cluster, topic="nothing")


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(MissingExtra, match="confluent-kafka") as caught:
        named_source("kafka", {"brokers": "127.0.0.1:9", "topic": "t"})
    assert "streamcl[kafka]" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "avro"}, "format is 'avro'; expected one of headers, envelope"),
        ({"key": "name"}, "key is 'name'"),
        ({"requests": "t"}, "requests need their own"),
        ({"settings": {"enable.auto.commit": True}}, "enable.auto.commit cannot be given"),
        ({"settings": {"sasl.password": "x"}}, "sasl.password is a secret"),
        ({"settings": {"no.such.setting": 1}}, "no.such.setting"),
        ({"credentials": "no-such-file"}, "cannot be read"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        named_source("kafka", {"brokers": "127.0.0.1:9", "topic": "t", **options})


def test_credentials_come_from_a_file(tmp_path):
    path = tmp_path / "kafka.properties"
    path.write_text("# of the lab\nsasl.mechanism = PLAIN\nsasl.username=me\n\nsasl.password=a=b\n")
    KafkaReader("127.0.0.1:9", "t", credentials=path, settings={"security.protocol": "sasl_plaintext"})
    path.write_text("sasl.password\n")
    with pytest.raises(ConfigError, match="not name=value"):
        KafkaReader("127.0.0.1:9", "t", credentials=path)
