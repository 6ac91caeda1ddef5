"""Records that another process pushes into a spool, and the inbox of labels beside a reader."""

from __future__ import annotations

import io
import json
import socket
import stat
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from conditions import wait_for
from live_readers import Clock, ScriptedReader, record
from pictures import encoded_picture
from PIL import Image

from streamcl.errors import BadRecord, SourceError, SpoolFull
from streamcl.requests.label import Label
from streamcl.testing import check_live_reader
from streams.live.source import LiveSource
from streams.live.spool.push import PushProducer
from streams.live.spool.push_channel import ADDRESS, PushReceipt, listening, push
from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_reader import SpoolReader
from streams.live.with_inbox import InboxReader

IMAGE = encoded_picture("bee", 1)


def spool_reader(folder, **options):
    retention = Retention(reserve=0, max_bytes=options.pop("max_bytes", 2**30))
    return SpoolReader(Spool(folder, retention), PushProducer(**options))


@contextmanager
def receiving(reader):
    """A reader that is open and polled, as by a run, until the end of the block; yields what has come."""
    reader.open(None)
    arrivals, done = [], threading.Event()

    def poll():
        while not done.is_set():
            arrivals.extend(reader.poll(0.05))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        wait_for((reader.retained.folder / ADDRESS).exists)
        yield arrivals
    finally:
        done.set()
        thread.join()
        reader.close()


def test_pushed_records_arrive_once_with_their_fields(tmp_path):
    with receiving(spool_reader(tmp_path)) as arrivals:
        sent = {"image": IMAGE, "id": "a", "label": "bee", "subject": "ann", "domain": "door"}
        assert push(tmp_path, [sent, {"image": IMAGE}]) == PushReceipt(("a", "push-1"), 0)
        assert push(tmp_path, [sent, {"image": IMAGE, "id": "b"}]) == PushReceipt(("a", "b"), 1)
        push(tmp_path, [{"label_of": "b", "label": "ant"}])
        wait_for(lambda: len(arrivals) == 4)
    values = [each.value for each in arrivals]
    assert values[0] == {**sent, "privacy": None}
    assert [each["id"] for each in values[:3]] == ["a", "push-1", "b"]
    assert values[3] == Label("b", "ant")


def test_what_cannot_be_read_is_refused_and_nothing_of_its_message_is_written(tmp_path):
    with receiving(spool_reader(tmp_path)) as arrivals:
        for bad, reason in [
            ({"image": b"no image"}, "not an image"),
            ({"image": IMAGE[: len(IMAGE) // 2]}, "image"),
            ({"label_of": "", "label": "ant"}, "id"),
            ({"label_of": "a", "label": ""}, "label"),
        ]:
            with pytest.raises(BadRecord, match=reason):
                push(tmp_path, [{"image": IMAGE}, bad])
        assert push(tmp_path, [{"image": IMAGE}]).ids == ("push-0",)
        wait_for(arrivals.__len__)
    assert len(arrivals) == 1


def test_an_inbox_takes_labels_only(tmp_path):
    with receiving(spool_reader(tmp_path, records=False)):
        with pytest.raises(BadRecord, match="labels are taken"):
            push(tmp_path, [{"image": IMAGE}])
        push(tmp_path, [{"label_of": "a", "label": "ant"}])


def test_nobody_listens_before_and_after(tmp_path):
    with pytest.raises(SourceError, match="no process learns"):
        push(tmp_path, [{"image": IMAGE}])
    with receiving(spool_reader(tmp_path)):
        address = (tmp_path / ADDRESS).read_bytes()
        assert stat.S_IMODE((tmp_path / ADDRESS).stat().st_mode) == 0o600
    assert not (tmp_path / ADDRESS).exists()
    (tmp_path / ADDRESS).write_bytes(address)  # as after a kill
    with pytest.raises(SourceError, match="no process learns"):
        push(tmp_path, [{"image": IMAGE}])


def test_a_full_spool_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("streams.live.spool.push.ROOM_TIMEOUT", 0.1)
    with receiving(spool_reader(tmp_path, max_bytes=150_000)):
        with pytest.raises(SpoolFull, match="no room"):
            push(tmp_path, [{"image": noise(128)}] * 4)
        with pytest.raises(BadRecord, match="raise max_bytes"):
            push(tmp_path, [{"image": noise(200)}])
        assert push(tmp_path, [{"image": noise(128)}]).ids == ("push-0",)


def noise(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "message",
    [
        b"\n",
        b"garbage\n",
        b"[]\n",
        b'{"records": []}\n',
        b'{"secret": "wrong", "records": []}\n',
        b'{"secret": "SECRET", "records": 3}\n',
        b'{"secret": "SECRET", "records": [{"fields": {}, "image": -1}]}\n',
        b'{"secret": "SECRET", "records": [{"fields": {}, "image": 1000000000000}]}\n',
        b'{"secret": "SECRET", "records": [{"fields": {}, "image": 10}]}\nshort',
    ],
)
def test_messages_of_strangers_and_those_cut_short_are_answered_by_nothing(tmp_path, message):
    taken = []
    with listening(tmp_path, lambda records: taken.append(records) or PushReceipt(())):
        address = json.loads((tmp_path / ADDRESS).read_text())
        with socket.create_connection(("127.0.0.1", address["port"]), 60) as connection:
            connection.sendall(message.replace(b"SECRET", address["secret"].encode()))
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert not taken


SCRIPT = [(0.0, record(number)) for number in range(5)]


def with_inbox(folder, script=SCRIPT):
    return InboxReader(ScriptedReader(script, Clock(), ends=True), spool_reader(folder, records=False))


def test_a_reader_with_an_inbox_keeps_the_promises_of_a_live_reader(tmp_path):
    check_live_reader(lambda: with_inbox(tmp_path / "inbox"))


def test_labels_come_between_records_and_are_replayed_where_they_came(tmp_path):
    script = [(0.0, record(0)), (5.0, record(1))]
    reader = with_inbox(tmp_path, script)
    reader.open(None)
    first = reader.poll(0.0)
    wait_for((tmp_path / ADDRESS).exists)
    push(tmp_path, [{"label_of": "r0", "label": "c"}])
    arrivals = [*first, *reader.poll(0.0), *reader.poll(10.0)]
    assert [each.value for each in arrivals][1] == Label("r0", "c")
    assert len(arrivals) == 3
    keys = [json.loads(json.dumps(each.key)) for each in arrivals]
    reader.close()
    again = with_inbox(tmp_path, script)
    again.open(None)
    assert [str(each.value) for each in again.replay(keys)] == [str(each.value) for each in arrivals]
    again.advance(keys)
    assert again.position() == {"inbox/source": {"next": len(keys) - 1}, "inbox/labels": {"next": 1}}
    again.close()


def test_a_run_that_began_without_an_inbox_goes_on_with_one(tmp_path):
    plain = LiveSource(ScriptedReader(SCRIPT, Clock(), ends=True))
    next(iter(plain))
    state = plain.state_dict()
    source = LiveSource(with_inbox(tmp_path))
    source.load_state_dict(state)
    source.acknowledge(state)
    assert [each.offset for each in source] == []
    assert source.state_dict()["offset"] == 5
    source.close()
