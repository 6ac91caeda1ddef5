"""The objects of a bucket, each once, in any order of keys and times; replaced and unreadable ones."""

from __future__ import annotations

import io
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from live_configs import ids_learned
from live_readers import Clock
from PIL import Image

from streamcl.errors import BadRecord, ConfigError, MissingExtra, SourceError
from streamcl.events import Batch
from streamcl.sources.live_reader import LiveReader
from streamcl.testing import check_live_reader
from streams.live.files.listing import MAX_RETRY_DELAY
from streams.live.files.objects import BODY_ATTEMPTS, ObjectReader
from streams.live.source import LiveSource
from streams.user.records import RecordPolicy

pytestmark = pytest.mark.long


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Bucket:
    """A bucket that is listed when the test says so."""

    def __init__(self, url: str, **options) -> None:
        self.clock = Clock()
        self.url, self.options = url, options
        self.fs, self.root = fsspec.core.url_to_fs(url, **options.get("options", {}))
        self.reader = self.again()

    def again(self) -> ObjectReader:
        return ObjectReader(self.url, clock=self.clock, sleep=self.sleep, **self.options)

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds

    def put(self, key: str, shade: int = 0) -> None:
        self.fs.pipe_file(f"{self.root}/{key}", png(shade))

    def listed(self, reader: ObjectReader | None = None):
        """Return what the next two listings find: one is enough where objects have tags."""
        found = []
        for _ in range(2):
            self.clock.now += MAX_RETRY_DELAY + 1
            found += (reader or self.reader).poll(0.0)
        return found

    def take(self, arrivals) -> None:
        self.reader.advance([each.key for each in arrivals])


@pytest.fixture(autouse=True)
def credentials(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("moto", reason="moto is not installed: S3 itself is not tried")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["memory", "local", "s3"])
def bucket(request, tmp_path) -> Bucket:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return Bucket(f"memory://{name}/in")
    if request.param == "local":
        (tmp_path / "in").mkdir()
        return Bucket(f"local://{tmp_path}/in", options={"auto_mkdir": True})
    url = request.getfixturevalue("server")
    pytest.importorskip("s3fs")
    options = {"endpoint_url": url, "use_listings_cache": False}
    made = Bucket(f"s3://{name}/in", options=options)
    made.fs.mkdir(name)
    return made


def ids(arrivals) -> list[str]:
    return [each.value["id"] for each in arrivals]


def test_objects_come_with_their_folders_as_labels(bucket):
    for key in ("cat/b.png", "dog/deep/a.png", "notes.txt", "cat/.hidden.png", "flat.png"):
        bucket.put(key)
    assert isinstance(bucket.reader, LiveReader)
    arrivals = bucket.listed()
    assert sorted(ids(arrivals)) == ["cat/b.png", "dog/deep/a.png"]
    assert {each.value["id"]: each.value["label"] for each in arrivals}["dog/deep/a.png"] == "dog"
    assert bucket.reader.lag() == 2
    bucket.take(arrivals)
    assert bucket.listed() == []
    assert bucket.reader.lag() == 0


@pytest.mark.long
def test_it_keeps_the_promises_of_a_live_reader():
    bucket = Bucket(f"memory://{uuid.uuid4().hex}/in")
    for number in range(4):
        bucket.put(f"cat/{number}.png", shade=number)
    check_live_reader(lambda: ObjectReader(bucket.url, interval=0.01), timeout=0.05, count=4)


def test_a_key_that_sorts_before_the_position_is_seen_after_a_restart_too(bucket):
    bucket.put("cat/m.png")
    bucket.take(bucket.listed())
    position = bucket.reader.position()
    bucket.put("cat/a.png")
    bucket.fs.rm_file(f"{bucket.root}/cat/m.png")
    second = bucket.again()
    second.open(position)
    assert ids(bucket.listed(second)) == ["cat/a.png"]


def test_replay_fetch_and_a_replaced_object(bucket):
    bucket.put("cat/a.png")
    bucket.put("cat/b.png")
    first = bucket.listed()
    bucket.take(first)
    assert sorted(dict(bucket.reader.fetch(["cat/a.png", "cat/b.png", "../x.png"]))) == [
        "cat/a.png",
        "cat/b.png",
    ]
    bucket.put("cat/a.png", shade=200)
    (new,) = bucket.listed()
    assert new.value["id"].startswith("cat/a.png@")
    assert list(dict(bucket.reader.fetch(["cat/a.png", "cat/b.png"]))) == ["cat/b.png"]
    replayed = bucket.again().replay([*(each.key for each in first), new.key])
    values = {each.key[0] + str(each.key[3]): each.value for each in replayed}
    assert isinstance(values["cat/a.pngFalse"], BadRecord)
    assert values["cat/b.pngFalse"]["image"] == png(0)
    assert values["cat/a.pngTrue"] == new.value
    bucket.take([new])
    assert list(dict(bucket.reader.fetch([new.value["id"]]))) == [new.value["id"]]


@pytest.mark.parametrize("replaced", ["skip", "fail"])
def test_a_replaced_object_is_left_out_or_ends_the_run(replaced):
    bucket = Bucket(f"memory://{uuid.uuid4().hex}", replaced=replaced)
    bucket.put("cat/a.png")
    bucket.take(bucket.listed())
    bucket.put("cat/a.png", shade=9)
    if replaced == "skip":
        assert bucket.listed() == []
    else:
        with pytest.raises(SourceError, match="another content"):
            bucket.listed()


def test_a_bucket_that_does_not_exist_is_refused(server):
    pytest.importorskip("s3fs")
    bucket = Bucket("s3://nowhere/in", options={"endpoint_url": server})
    with pytest.raises(SourceError, match="does not exist"):
        bucket.listed()


class FaultyFiles(MemoryFileSystem):
    """Files in memory, some of whose calls fail: an exception, or a function of the value, by method."""

    faults: ClassVar[dict[str, Any]] = {}

    def find(self, path, **kwargs):
        return self._with_fault("find", super().find, path, **kwargs)

    def cat_file(self, path, **kwargs):
        return self._with_fault("cat_file", super().cat_file, path, **kwargs)

    def _with_fault(self, name, call, path, **kwargs):
        fault = self.faults.get(name)
        if isinstance(fault, Exception):
            raise fault
        value = call(path, **kwargs)
        return fault(value, path) if fault else value


@pytest.fixture
def faults() -> Iterator[dict[str, Any]]:
    """Let files in memory fail as the dict says."""
    FaultyFiles.faults = {}
    fsspec.register_implementation("memory", FaultyFiles, clobber=True)
    yield FaultyFiles.faults
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)


def faulty_bucket(**options) -> Bucket:
    return Bucket(f"memory://{uuid.uuid4().hex}", **options)


def test_an_outage_of_the_listing_is_waited_for_with_growing_delays(faults, caplog):
    bucket = faulty_bucket(interval=1.0)
    bucket.put("cat/a.png")
    bucket.listed()
    faults |= {"find": RuntimeError("connection reset")}
    times = []
    for _ in range(1000):
        before = len(caplog.records)
        assert list(bucket.reader.poll(0.5)) == []
        times += [bucket.clock.now] if len(caplog.records) > before else []
    assert [after - before for before, after in pairwise(times)] == [1, 2, 4, 8, 16, 32]
    bucket.put("cat/b.png")
    faults.clear()
    assert ids(bucket.listed()) == ["cat/b.png"]


def test_an_outage_while_reading_loses_nothing(faults):
    bucket = faulty_bucket()
    for number in range(3):
        bucket.put(f"cat/{number}.png")
    faults |= {"cat_file": TimeoutError("slow")}
    assert bucket.listed() == []
    faults.clear()
    assert len(bucket.listed()) == 3


def test_records_of_a_replay_are_never_bad_for_an_outage(faults):
    bucket = faulty_bucket()
    bucket.put("cat/a.png")
    (arrival,) = bucket.listed()
    reader = bucket.again()
    faults |= {"cat_file": ConnectionError("down")}
    with pytest.raises(SourceError, match="cannot be read again"):
        reader.replay([arrival.key])


def test_a_body_that_stays_short_is_a_bad_record_and_one_that_recovers_is_not(faults):
    bucket = faulty_bucket()
    bucket.put("cat/a.png")
    bucket.put("cat/b.png")
    calls = []

    def cut(data, path):
        calls.append(path)
        return data[:9] if path.endswith("a.png") or len(calls) < 4 else data

    faults |= {"cat_file": cut}
    by_path = {each.key[0]: each.value for each in bucket.listed()}
    assert "is cut off" in str(by_path["cat/a.png"])
    assert by_path["cat/b.png"]["image"] == png(0)


def test_an_object_that_is_replaced_while_it_is_read_is_a_bad_record(faults):
    bucket = faulty_bucket()
    bucket.put("cat/a.png")

    def replace(data, path):
        bucket.put("cat/a.png", shade=3)
        return data

    faults |= {"cat_file": replace}
    (arrival,) = bucket.listed()
    assert "was replaced" in str(arrival.value)


def test_an_object_that_may_not_be_read_is_bad_only_where_the_listing_works(faults):
    bucket = faulty_bucket()
    bucket.put("cat/a.png")
    listings: list[int] = []

    def once(found, *_):
        listings.append(1)
        if len(listings) > 2:
            raise PermissionError("expired")
        return found

    expired = PermissionError("expired")
    faults |= {"cat_file": expired, "find": once}
    assert bucket.listed() == []
    bucket.clock.now += 100
    assert list(bucket.reader.poll(0.0)) == []  # its credentials have expired: the object is not at fault
    del faults["find"]
    (arrival,) = bucket.listed()
    assert "may not be read" in str(arrival.value)


def test_an_object_above_the_limit_is_not_read(faults):
    bucket = faulty_bucket(policy=RecordPolicy(max_file_bytes=10))
    bucket.put("cat/a.png")
    faults |= {"cat_file": AssertionError("read")}
    (arrival,) = bucket.listed()
    assert "10 allowed" in str(arrival.value)


def test_as_a_source_it_brings_batches(bucket):
    for number in range(5):
        bucket.put(f"cat/{number}.png", shade=number)
    events = islice(LiveSource(bucket.reader, clock=bucket.clock), 60)
    (batch,) = [event for event in events if isinstance(event, Batch)]
    assert sorted(int(sample.image[0, 0, 0]) for sample in batch.samples) == list(range(5))


def test_the_shipped_configuration_learns_what_is_in_its_bucket(server, tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed: S3 itself is not tried")
    monkeypatch.setenv("STREAMCL_BUCKET", f"s3://{uuid.uuid4().hex}/in")
    monkeypatch.setenv("STREAMCL_S3_ENDPOINT", server)
    bucket = Bucket(os.environ["STREAMCL_BUCKET"], options={"endpoint_url": server})
    bucket.fs.mkdir(bucket.root.partition("/")[0])
    for number in range(8):
        bucket.put(f"{'cat' if number % 2 else 'dog'}/{number}.png", shade=20 * number)
    assert sorted(ids_learned("live_s3", tmp_path)) == sorted(
        f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(8)
    )


def test_a_scheme_without_its_package_and_an_unknown_one(monkeypatch):
    with pytest.raises(ConfigError, match="no URL"):
        ObjectReader("foo://bucket")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtra) as caught:
        ObjectReader("s3://bucket")
    assert caught.value.hint == 'pip install "streamcl[s3]"'


class CutStore(BaseHTTPRequestHandler):
    """Lists one object of 100 bytes and breaks off in the middle of its body, time and again."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        listing = "list-type" in self.path
        body = LISTING if listing else b"x" * 100
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if listing else body[:50])
        if not listing:
            self.server.bodies += 1
            self.close_connection = True

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.send_header("ETag", '"tag-1"')
        self.end_headers()

    def log_message(self, *args):
        pass


LISTING = b"""<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>1</KeyCount><IsTruncated>false
</IsTruncated><Contents><Key>in/cat/a.png</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>
<ETag>"tag-1"</ETag><Size>100</Size></Contents></ListBucketResult>"""


def test_a_body_shorter_than_its_content_length_is_tried_again_then_bad():
    pytest.importorskip("s3fs", reason="s3fs is not installed: S3 itself is not tried")
    with ThreadingHTTPServer(("127.0.0.1", 0), CutStore) as server:
        server.bodies = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"endpoint_url": f"http://127.0.0.1:{server.server_port}"}
        (arrival,) = Bucket("s3://b/in", options=options).listed()
        server.shutdown()
    assert "is cut off" in str(arrival.value)
    assert server.bodies >= BODY_ATTEMPTS
