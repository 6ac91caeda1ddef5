"""Redis Streams: each entry once, across restarts of either side; gaps, requests, trimming; a real server."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from live_configs import ids_learned
from log_messages import logged
from streams_data import png

from streamcl.errors import BadRecord, ConfigError, RefusedRequest, SourceError
from streamcl.events import Batch, ForgetRequest
from streamcl.sources.live_reader import ShardableReader
from streamcl.testing import check_live_reader
from streams.live.brokers.redis_connection import RedisConnection
from streams.live.brokers.redis_entries import ENTRIES_AT_ONCE
from streams.live.brokers.redis_streams import RedisReader
from streams.live.source import LiveSource


def send(server, numbers, key="cam", **fields) -> list[str]:
    """Add entries; return the ids that their records have by default."""
    added = [
        server.client.xadd(key, {"image": f"image {k}".encode(), "label": "ab"[k % 2], **fields})
        for k in numbers
    ]
    return [f"{key}/{entry.decode()}" for entry in added]


def opened(server, position=None, **options) -> RedisReader:
    reader = RedisReader(options.pop("keys", "cam"), server.url, **options)
    reader.open(position)
    return reader


def ids(arrivals) -> list[str]:
    return [each.value["id"] for each in arrivals]


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"trim": True}, {"keys": ["cam", "door"], "requests": "forget"}])
def test_it_keeps_the_promises_of_a_live_reader(redis_server, options):
    send(redis_server, range(5))
    send(redis_server, range(3), key="door", id="")
    redis_server.client.xadd("forget", {"data": '{"subject": "p7"}'})
    check_live_reader(
        lambda: RedisReader(
            options.get("keys", "cam"),
            redis_server.url,
            **{name: each for name, each in options.items() if name != "keys"},
        ),
        timeout=0.02,
        count=9 if "keys" in options else 5,
    )


def test_entries_come_in_order_few_at_a_time_as_records(redis_server):
    expected = send(redis_server, range(2 * ENTRIES_AT_ONCE + 3), subject="p1")
    reader = opened(redis_server)
    polls = [reader.poll(0.0) for _ in range(4)]
    assert [len(each) for each in polls] == [ENTRIES_AT_ONCE, ENTRIES_AT_ONCE, 3, 0]
    first = polls[0][0]
    assert first.value == {"image": b"image 0", "label": "a", "subject": "p1", "id": expected[0]}
    assert [name for each in polls for name in ids(each)] == expected


def test_a_record_wakes_a_waiting_poll(redis_server):
    reader = opened(redis_server)
    assert reader.poll(0.01) == ()
    send(redis_server, [1])
    assert len(reader.poll(30.0)) == 1


def test_a_key_that_is_not_there_yet_is_waited_for_and_said(redis_server):
    with logged() as messages:
        reader = opened(redis_server)
    assert any("has no stream 'cam' yet" in each for each in messages)
    assert ids(reader.poll(0.01)) == []
    sent = send(redis_server, range(2))
    assert ids(reader.poll(5.0)) == sent


@pytest.mark.parametrize("taken", range(5))
def test_a_trimmed_stream_is_refused_where_entries_were_not_read(redis_server, taken):
    """L5: 3 of 5 entries are gone."""
    send(redis_server, range(5))
    reader = opened(redis_server)
    reader.advance([each.key for each in reader.poll(0.0)[:taken]])
    position = reader.position()
    redis_server.client.xtrim("cam", maxlen=2, approximate=False)
    if taken >= 3:
        assert len(opened(redis_server, position).poll(0.0)) == 5 - taken
        return
    with pytest.raises(
        SourceError, match=f"gap in the stream 'cam'.*{3 - taken} entr.* removed after"
    ) as raised:
        opened(redis_server, position)
    assert raised.value.exit_code == 3
    skipping = opened(redis_server, position, on_gap="skip")
    assert len(skipping.poll(0.0)) == 2


def test_a_gap_that_opens_while_it_is_read_is_noticed_before_the_next_read(redis_server):
    send(redis_server, range(4))
    reader = opened(redis_server)
    assert len(reader.poll(0.0)) == 4
    redis_server.client.xtrim("cam", maxlen=0, approximate=False)  # all were read: nothing is missing
    assert reader.poll(0.0) == ()
    send(redis_server, range(3))
    redis_server.client.xtrim("cam", maxlen=1, approximate=False)
    with pytest.raises(SourceError, match="2 entries were removed after"):
        reader.poll(0.0)


def test_an_entry_deleted_before_it_was_read_is_a_gap_and_one_deleted_later_is_none(redis_server):
    sent = send(redis_server, range(6))
    reader = opened(redis_server)
    reader.advance([each.key for each in reader.poll(0.0)[:2]])
    redis_server.client.xdel("cam", sent[1].rpartition("/")[2])
    assert len(opened(redis_server, reader.position()).poll(0.0)) == 4
    redis_server.client.xdel("cam", sent[3].rpartition("/")[2])
    with pytest.raises(SourceError, match="deleted before it was read"):
        opened(redis_server, reader.position())
    skipping = opened(redis_server, reader.position(), on_gap="skip")
    assert ids(skipping.poll(0.0)) == [sent[2], *sent[4:]]


def test_a_stream_that_was_made_anew_is_refused(redis_server):
    send(redis_server, range(4))
    reader = opened(redis_server)
    reader.advance([each.key for each in reader.poll(0.0)])
    redis_server.client.delete("cam")
    with pytest.raises(SourceError, match="is gone"):
        reader.poll(0.0)
    send(redis_server, range(2))
    with pytest.raises(SourceError, match="made anew"):
        opened(redis_server, reader.position())


def test_a_broker_that_is_killed_is_waited_for_and_nothing_is_lost_or_doubled(redis_server):
    """L2."""
    sent = send(redis_server, range(5))
    reader = opened(redis_server)
    found = list(reader.poll(0.0))
    redis_server.kill()
    with logged() as messages:
        assert [reader.poll(0.02) for _ in range(30)] == [()] * 30
        assert reader.lag() is None
        reader.acknowledge(reader.position())
        redis_server.start()
        sent += send(redis_server, range(3))
        until = time.monotonic() + 120
        while len(found) < len(sent) and time.monotonic() < until:
            found += reader.poll(0.1)
    assert ids(found) == sent
    assert sum("is away" in each for each in messages) == 1
    assert sum("is back" in each for each in messages) == 1


def test_a_broker_that_is_not_there_is_refused_when_reading_begins(redis_server, monkeypatch):
    monkeypatch.setattr("streams.live.brokers.redis_streams.OPEN_TIMEOUT", 0.3)
    redis_server.kill()
    with pytest.raises(SourceError, match="does not answer"):
        opened(redis_server)


def test_pauses_between_attempts_grow_to_a_limit(redis_server):
    now = [0.0]
    attempts = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    connection = RedisConnection(redis_server.url, clock=lambda: now[0], sleep=sleep)
    redis_server.kill()

    def work(client):
        attempts.append(now[0])
        client.ping()

    while now[0] < 60.0:
        assert connection.attempt(work, 0.5) is None
    pauses = [after - before for before, after in pairwise(attempts)]
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert max(pauses) == pytest.approx(5.0)


def test_requests_come_before_data_and_malformed_ones_are_passed_over(redis_server):
    send(redis_server, range(3))
    for data in ('{"subject": "p7"}', "{", '{"label": "a", "offset": 9}', '{"label": "b"}'):
        redis_server.client.xadd("forget", {"data": data})
    redis_server.client.xadd("forget", {"other": "1"})
    reader = opened(redis_server, requests="forget")
    requests = reader.poll(0.0)
    kinds = [ForgetRequest, RefusedRequest, RefusedRequest, ForgetRequest, RefusedRequest]
    assert [type(each.value) for each in requests] == kinds
    assert requests[0].value.key == "/".join(requests[0].key)
    assert len(reader.poll(0.0)) == 3
    assert reader.lag() == 3


def test_as_a_source_it_passes_over_refused_requests_for_good(redis_server):
    for data in ("{", '{"subject": "p7"}', "{", '{"label": "a"}'):
        redis_server.client.xadd("forget", {"data": data})
    source = LiveSource(RedisReader("cam", redis_server.url, requests="forget"))
    with logged() as messages:
        first, second = islice((each for each in source if isinstance(each, ForgetRequest)), 2)
    assert (first.subject, second.label) == ("p7", "a")
    assert sum("a request to forget is refused" in each for each in messages) == 2
    again = LiveSource(RedisReader("cam", redis_server.url, requests="forget"))
    again.load_state_dict(source.state_dict())
    with logged() as messages:
        list(islice(again, 2))
    assert not [each for each in messages if "refused" in each]


def test_trimming_removes_what_a_checkpoint_has_passed(redis_server):
    send(redis_server, range(5))
    redis_server.client.xadd("forget", {"data": '{"subject": "p7"}'})
    reader = opened(redis_server, requests="forget", trim=True)
    reader.advance([each.key for each in (*reader.poll(0.0), *reader.poll(0.0)[:3])])
    assert reader.fetch is None
    assert redis_server.client.xlen("cam") == 5
    reader.acknowledge(reader.position())
    assert (redis_server.client.xlen("cam"), redis_server.client.xlen("forget")) == (2, 0)
    assert len(opened(redis_server, reader.position(), requests="forget").poll(0.0)) == 2


def test_nothing_is_trimmed_unless_it_is_asked_for(redis_server):
    send(redis_server, range(5))
    reader = opened(redis_server)
    reader.advance([each.key for each in reader.poll(0.0)])
    reader.acknowledge(reader.position())
    assert redis_server.client.xlen("cam") == 5


def test_records_are_fetched_by_their_own_ids_too(redis_server):
    sent = send(redis_server, range(ENTRIES_AT_ONCE + 5), key="a/b")
    own = json.dumps({"image": "AAAA", "id": 77})
    redis_server.client.xadd("a/b", {"data": own})
    redis_server.client.xadd("a/b", {"data": json.dumps({"image": "AAAA", "id": ["no", "id"]})})
    other = json.dumps({"image": "BBBB", "id": 77})
    redis_server.client.xadd("a/b", {"data": other})
    reader = RedisReader("a/b", redis_server.url)  # that it was opened is not needed
    ids = [sent[0], sent[-1], "77", "a/b/007-1", "a/b/1-99999999999999999999", "no"]
    found = list(reader.fetch(ids))
    assert sorted(name for name, _ in found) == sorted([sent[0], sent[-1], "77", "77"])
    assert dict(found)[sent[0]]["image"] == b"image 0"


def test_a_replayed_entry_that_is_gone_is_a_bad_record(redis_server):
    sent = send(redis_server, range(3))
    reader = opened(redis_server)
    keys = [each.key for each in reader.poll(0.0)]
    redis_server.client.xdel("cam", sent[1].rpartition("/")[2])
    values = [each.value for each in opened(redis_server, on_gap="skip").replay(keys)]
    assert isinstance(values[1], BadRecord)
    assert [values[0]["id"], values[2]["id"]] == [sent[0], sent[2]]


def test_keys_are_divided_among_ranks(redis_server):
    keys = ["a", "b", "c"]
    sent = {name for key in keys for name in send(redis_server, range(2), key=key)}
    redis_server.client.xadd("forget", {"data": '{"subject": "p7"}'})
    whole = RedisReader(keys, redis_server.url, requests="forget")
    assert isinstance(whole, ShardableReader)
    shards = [whole.shard(rank, 2) for rank in range(2)]
    assert {each.name for each in shards} == {whole.name}
    for each in shards:
        each.open(None)
    requests = [each.poll(0.0) for each in shards]
    assert [type(requests[0][0].value), len(requests[1])] == [ForgetRequest, 2]
    arrivals = shards[0].poll(0.0)
    assert {each.value["id"] for each in (*arrivals, *requests[1])} == sent
    shards[0].advance([requests[0][0].key, arrivals[0].key])
    shards[1].advance([requests[1][0].key])
    whole.open(whole.merge([each.position() for each in shards]))
    assert set(ids(whole.poll(0.0))) == sent - {arrivals[0].value["id"], requests[1][0].value["id"]}
    assert whole.merge([None, None]) is None
    with pytest.raises(ConfigError, match="3 streams cannot be divided among 4 ranks"):
        whole.shard(0, 4)


def test_the_shipped_configuration_learns_a_stream(redis_server, tmp_path, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    for number in range(8):
        redis_server.client.xadd(
            "images", {"image": png(number), "label": "ab"[number % 2], "id": f"r{number}"}
        )
    assert ids_learned("live_redis", tmp_path / "run") == [f"r{number}" for number in range(8)]


def test_tls_is_a_matter_of_the_url(redis_server, tmp_path):
    certificate, key = self_signed(tmp_path)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    redis_server.kill()
    files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    redis_server.start("--tls-port", str(port), "--tls-auth-clients", "no", *map(str, files))
    send(redis_server, range(2))
    reader = RedisReader("cam", f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}")
    reader.open(None)
    assert len(reader.poll(0.0)) == 2
    reader.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def test_a_password_is_nowhere_in_the_run_directory(redis_server, tmp_path, monkeypatch, capfd):
    for number in range(8):
        redis_server.client.xadd("images", {"image": png(number), "label": "a", "id": f"r{number}"})
    redis_server.kill()
    redis_server.start("--requirepass", "correct-horse")
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("REDIS_PASSWORD", "correct-horse")
    with logged() as messages:
        assert len(ids_learned("live_redis", tmp_path / "run")) == 8
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert "REDIS_PASSWORD" in (tmp_path / "run" / "config.yaml").read_text()
    assert not [path for path in files if b"correct-horse" in path.read_bytes()]
    assert "correct-horse" not in "".join(messages) + "".join(capfd.readouterr())


def test_a_key_of_another_type_and_a_wrong_password_are_refused_without_the_password(redis_server):
    redis_server.client.set("cam", "text")
    with pytest.raises(SourceError, match="'cam' cannot be read"):
        opened(redis_server)
    redis_server.kill()
    redis_server.start("--requirepass", "right")
    with pytest.raises(SourceError, match="refuses") as raised:
        opened(redis_server, password="wrong-secret")
    assert "wrong-secret" not in str(raised.value)
    reader = RedisReader("other", redis_server.url, password="right")
    reader.open(None)
    assert "right" not in reader.name + str(reader.guarantee) + repr(reader.position())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": []}, "distinct names"),
        ({"keys": ["a", "a"]}, "distinct names"),
        ({"keys": "a", "requests": "a"}, "distinct names"),
        ({"keys": "a", "on_gap": "maybe"}, "on_gap"),
        ({"keys": "a", "url": "http://:secret@x"}, "URL of Redis"),
        ({"keys": "a", "url": "redis://:secret@x?no_such_option=1"}, "URL of Redis"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    pytest.importorskip("redis")
    with pytest.raises(ConfigError, match=message) as raised:
        RedisReader(**options)
    assert "secret" not in str(raised.value)


def test_as_a_source_it_brings_batches_of_several_streams(redis_server):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(buffer, "PNG")
    for key in ("cam", "door"):
        for _ in range(3):
            redis_server.client.xadd(key, {"image": png(9), "label": "a"})
    redis_server.client.xadd("cam", {"image": b"no image"})
    source = LiveSource(RedisReader(["cam", "door"], redis_server.url))
    (batch,) = islice((each for each in source if isinstance(each, Batch)), 1)
    assert (len(batch.samples), len(batch.rejected)) == (6, 1)
    assert {sample.id.partition("/")[0] for sample in batch.samples} == {"cam", "door"}
