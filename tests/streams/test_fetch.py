from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from streamcl.errors import ConfigError, SourceError
from streams.download import fetch as module
from streams.download.fetch import CATALOGUE, fetch, fetched_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def an_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("cifar-100-python/train")
        info.size = 300_000
        archive.addfile(info, io.BytesIO(bytes(300_000)))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` at any path, and hangs up after `patience` bytes the first `cuts` times."""

    daemon_threads = True
    content = b""
    cuts = 0
    patience = 100_000
    ranges: list[str | None]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.server.content[start:]
        self.send_response((206 if asked else 200) if body else 416)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: self.server.patience]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local stand-in for the host of cifar100, with the checksum of what it serves."""
    with Server(("127.0.0.1", 0), Answer) as server:
        server.content, server.ranges = an_archive(), []
        url = f"http://127.0.0.1:{server.server_port}/data.tar"
        md5 = hashlib.md5(server.content).hexdigest()
        entries = [replace(e, how=url, md5=md5) if e.name == "cifar100" else e for e in CATALOGUE]
        monkeypatch.setattr(module, "CATALOGUE", entries)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_is_unpacked_and_kept(server: Server, cache: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch("cifar100", lambda *said: seen.append(said))
    assert folder == fetched_path("cifar100") == cache / "data" / "cifar100"
    assert (folder / "cifar-100-python" / "train").stat().st_size == 300_000
    assert seen[-1] == ("cifar100", len(server.content), len(server.content))
    assert [path.name for path in folder.parent.iterdir()] == ["cifar100"]  # the archive is not kept
    fetch("cifar100")
    assert len(server.ranges) == 1


def test_a_broken_download_goes_on_where_it_stopped(server: Server) -> None:
    server.cuts = 2
    fetch("cifar100")
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_what_has_come_is_kept_for_the_next_run(server: Server, cache: Path) -> None:
    server.cuts, server.patience = 3, 1000
    with pytest.raises(SourceError, match="the connection ended after 3000 of") as caught:
        fetch("cifar100")
    assert "fetch again to resume" in str(caught.value.hint)
    assert not (cache / "data" / "cifar100").exists()
    fetch("cifar100")
    assert server.ranges[-1] == "bytes=3000-"


def test_a_download_that_was_complete_is_only_checked(server: Server, cache: Path) -> None:
    (cache / "data").mkdir(parents=True)
    (cache / "data" / "data.tar.part").write_bytes(server.content)
    assert fetch("cifar100").is_dir()


def test_another_file_than_the_known_one_is_not_kept(server: Server, cache: Path) -> None:
    server.content = server.content[:-1] + b"\1"
    with pytest.raises(SourceError, match="damaged or not the known file"):
        fetch("cifar100")
    assert [path.name for path in (cache / "data").iterdir()] == []


def test_an_absent_server_says_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [replace(e, how="http://127.0.0.1:9/data.tar") for e in CATALOGUE]
    monkeypatch.setattr(module, "CATALOGUE", entries)
    with pytest.raises(SourceError, match="could not be read"):
        fetch("cifar100")


def test_what_must_be_fetched_by_hand_comes_with_instructions() -> None:
    with pytest.raises(SourceError) as caught:
        fetch("imagenet-sketch")
    assert "unpack it" in str(caught.value.hint)
    with pytest.raises(SourceError, match="has not been fetched") as caught:
        fetched_path("imagenet-sketch")
    assert "unpack it" in str(caught.value.hint)


def test_what_is_not_there_yet_says_how_to_get_it() -> None:
    for name in ("weights", "cub200", "digits"):
        with pytest.raises(SourceError, match="has not been fetched") as caught:
            fetched_path(name)
        assert f"streamcl fetch {name}" in str(caught.value.hint)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        fetch("cifar-100")
    assert "did you mean 'cifar100'?" in str(caught.value.hint)


def test_every_entry_is_complete() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    for entry in CATALOGUE:
        assert entry.size > 0
        assert entry.licence
        assert entry.note
        assert (entry.md5 is not None) == (entry.kind == "download")
        assert bool(entry.members) == (entry.kind == "pip")
