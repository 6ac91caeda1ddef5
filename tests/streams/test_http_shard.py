"""Shards over HTTP: broken bodies are continued, and what stays broken names the shard."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dataset_files import write_tar
from streams_data import png

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source, fingerprints, first_events, samples_of
from streams.datasets import http_shard
from streams.datasets.http_shard import ATTEMPTS, WINDOW, ForwardFile
from streams.datasets.webdataset import shard_paths, webdataset


class Shelf(BaseHTTPRequestHandler):
    """Sends files; the server's `cuts` are the numbers of bytes after which the next answers break off."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        path = server.folder / self.path.lstrip("/")
        if server.status != 200 or not path.exists():
            self.send_error(server.status if path.exists() else 404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range") if server.ranges else None
        start = int(asked[6:-1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(data)
        self.wfile.write(data[start : start + cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(http_shard, "DELAY", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        server.folder, server.requests, server.cuts = tmp_path, [], []
        server.status, server.ranges, server.tag = 200, True, '"1"'
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def write_shards(folder: Path, mode: str = "w", suffix: str = "tar") -> None:
    for shard in range(2):
        members = []
        for i in range(5 * shard, 5 * shard + 5):
            members += [(f"{i:04}.png", png(i)), (f"{i:04}.cls", b"%d" % (i % 3))]
        write_tar(folder / f"part-{shard}.{suffix}", members, mode)


def remote(server: ThreadingHTTPServer, suffix: str = "tar"):
    return webdataset(f"http://127.0.0.1:{server.server_port}/part-{{0..1}}.{suffix}", batch_size=2)


@pytest.mark.parametrize(("mode", "suffix"), [("w", "tar"), ("w:gz", "tar.gz")])
def test_shards_over_http_are_those_on_disk(shelf, tmp_path, mode, suffix):
    write_shards(tmp_path, mode, suffix)
    local = first_events(webdataset(f"{tmp_path}/part-{{0..1}}.{suffix}", batch_size=2))
    assert fingerprints(first_events(remote(shelf, suffix))) == fingerprints(local)
    check_source(lambda: remote(shelf, suffix), limit=None)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 700, 1024, 2000, 5000])
def test_a_body_that_breaks_off_is_continued(shelf, tmp_path, ranges, cut):
    write_shards(tmp_path)
    shelf.ranges = ranges
    shelf.cuts = [cut, cut + 1]
    assert [sample.id for sample in samples_of(first_events(remote(shelf)))] == [f"{i:04}" for i in range(10)]
    assert len(shelf.requests) == 4


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_stays_cut_off_is_an_error_that_names_the_shard(shelf, tmp_path, ranges):
    write_shards(tmp_path)
    shelf.ranges = ranges
    shelf.cuts = [2000] + [0] * 20
    with pytest.raises(SourceError, match=r"'part-0.tar' cannot be read over HTTP, 4 times: .* of \d+"):
        first_events(remote(shelf))
    assert len(shelf.requests) <= ATTEMPTS + 1


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error(shelf, tmp_path):
    write_shards(tmp_path)
    shelf.cuts = [2000]

    class Tags(str):
        count = 0

        def __str__(self):
            Tags.count += 1
            return f'"{Tags.count}"'

        encode = lambda self, *args: str(self).encode(*args)  # noqa: E731

    shelf.tag = Tags()
    with pytest.raises(SourceError, match=r"'part-0.tar' was replaced"):
        first_events(remote(shelf))


@pytest.mark.parametrize(("status", "requests"), [(403, 1), (503, ATTEMPTS), (429, ATTEMPTS)])
def test_a_refusal_is_final_and_an_overload_is_tried_again(shelf, tmp_path, status, requests):
    write_shards(tmp_path)
    shelf.status = status
    with pytest.raises(SourceError, match=rf"'part-0.tar' cannot be read over HTTP.*{status}"):
        first_events(remote(shelf))
    assert len(shelf.requests) == requests


def test_a_shard_that_was_uploaded_cut_off_is_damaged(shelf, tmp_path):
    write_shards(tmp_path)
    path = tmp_path / "part-1.tar"
    with tarfile.open(path) as archive:
        end = max(member.offset_data for member in archive)
    path.write_bytes(path.read_bytes()[: (end // 512 + 1) * 512])
    with pytest.raises(SourceError, match=r"shard 'part-1.tar' is damaged"):
        first_events(remote(shelf))


def test_reading_goes_on_at_a_shard_and_a_member(shelf, tmp_path):
    write_shards(tmp_path)
    first = remote(shelf)
    first_events(first, 4)
    shelf.requests.clear()
    second = remote(shelf)
    second.load_state_dict(first.state_dict())
    assert [sample.id for sample in samples_of(first_events(second))] == ["0008", "0009"]
    assert len(shelf.requests) == 1  # the first shard is not asked for again


def test_other_schemes_are_refused():
    with pytest.raises(ConfigError, match="neither a local file nor on the web"):
        shard_paths(["ftp://example.org/a.tar"])


def test_a_forward_file_reads_and_steps_like_a_file_and_refuses_what_has_passed():
    data = bytes(range(256)) * 40 * (WINDOW // 8192)
    source = io.BytesIO(data)
    file = ForwardFile(source.read)
    for start, size in [(0, 5), (3, 10), (700, 0), (WINDOW + 5, 4000), (WINDOW - 9, 20), (len(data) - 3, 9)]:
        assert file.seek(start) == start
        assert file.read(size) == data[start : start + size]
        assert file.tell() == min(start + size, len(data))
    with pytest.raises(OSError, match="has passed"):
        file.seek(0)
    rest = ForwardFile(io.BytesIO(data).read)
    assert rest.read() == data
