"""Reads a shard over HTTP: its length is checked, and a body that breaks off is continued there."""

from __future__ import annotations

import gzip
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import PurePosixPath
from typing import IO, cast
from urllib.parse import unquote, urlsplit

from streamcl.errors import SourceError

ATTEMPTS = 4  # without a byte of progress, before the shard is given up
DELAY = 0.5  # seconds before the second attempt; doubled for each further one
READ_TIMEOUT = 60.0  # seconds that the server may be silent
WINDOW = 1 << 18  # bytes read at once, and remembered for short steps back
GZIP = b"\x1f\x8b"


def shard_name(url: str) -> str:
    """Return the last part of a URL's path, for messages: queries may hold secrets.

    >>> shard_name("https://example.org/a/train%20000.tar?token=secret")
    'train 000.tar'
    """
    return PurePosixPath(unquote(urlsplit(url).path)).name or "shard"


@contextmanager
def open_shard(url: str, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[IO[bytes]]:
    """Open a shard, unpacked where it is compressed by gzip. Steps back are possible within WINDOW bytes.

    Raise SourceError, then or while it is read, where the server refuses, where the body stays shorter than
    its Content-Length at several attempts, or where the shard is replaced meanwhile.
    """
    body = HttpBody(url, sleep=sleep)
    try:
        first = body.read(len(GZIP))
        start = io.BytesIO(first)
        raw = cast("IO[bytes]", ForwardFile(lambda size: start.read(size) or body.read(size)))
        if first != GZIP:
            yield raw
        else:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast("IO[bytes]", ForwardFile(unpacked.read))
    finally:
        body.close()


class HttpBody:
    """The body of a GET request; after a failure it goes on with the byte that is missing.

    Args:
        url: http or https.
        sleep: waits that many seconds.
    """

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._url, self._sleep = url, sleep
        self._answer: HTTPResponse | None = None
        self._read = 0  # bytes
        self._length: int | None = None
        self._tag: str | None = None
        self._failures = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end. Raise SourceError; see `open_shard`."""
        while self._length is None or self._read < self._length:
            try:
                if self._answer is None:
                    self._answer = self._connect()
                data = self._answer.read(size)
                self._check_end(data, self._read)
            except (OSError, HTTPException) as error:
                self._fail(error)
                continue
            self._read += len(data)
            self._failures = 0
            return data
        return b""

    def close(self) -> None:
        """Close the connection."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _connect(self) -> HTTPResponse:
        """Return the answer to a request for the bytes that are missing."""
        request = urllib.request.Request(self._url)
        if self._read:
            request.add_header("Range", f"bytes={self._read}-")
        answer = cast("HTTPResponse", urllib.request.urlopen(request, timeout=READ_TIMEOUT))
        missing = int(length) if (length := answer.headers.get("Content-Length")) else None
        skipped = self._read if answer.status == 206 else 0
        total = None if missing is None else skipped + missing
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if self._read and (total, tag) != (self._length, self._tag):
            answer.close()
            raise SourceError(f"shard {shard_name(self._url)!r} was replaced while it was read")
        self._length, self._tag = total, tag
        while skipped < self._read:  # the server sends it from its beginning
            block = answer.read(min(WINDOW, self._read - skipped))
            self._check_end(block, skipped)
            skipped += len(block)
        return answer

    def _check_end(self, data: bytes, read: int) -> None:
        """Raise HTTPException where no data come though some are missing after `read` bytes."""
        if not data and self._length is not None:
            raise HTTPException(f"the body ends after {read} of {self._length} bytes")

    def _fail(self, error: OSError | HTTPException) -> None:
        """Wait for the next attempt. Raise SourceError where there is none."""
        self.close()
        self._failures += 1
        refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
        if refused or self._failures == ATTEMPTS:
            tried = "" if refused else f", {ATTEMPTS} times"
            raise SourceError(
                f"shard {shard_name(self._url)!r} cannot be read over HTTP{tried}: {error}",
                hint="the same command continues at this shard once it can be read",
            ) from error
        self._sleep(DELAY * 2 ** (self._failures - 1))


class ForwardFile:
    """A file over a function that reads on; it remembers the last blocks, so that tarfile can step back.

    Args:
        read_on: returns up to that many bytes more, none at the end.
    """

    def __init__(self, read_on: Callable[[int], bytes]) -> None:
        self._read_on = read_on
        self._held = b""  # the last bytes, before and after the position
        self._start = self._position = 0  # of the bytes held, of the file

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, position: int) -> int:
        """Go to a position: forward to any, back into what is remembered. Return it."""
        if position < self._start:
            raise OSError(f"byte {position} of a stream has passed")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer at the end; all that are left where `size` is negative."""
        wanted = None if size < 0 else self._position + size
        while wanted is None or self._start + len(self._held) < wanted:
            block = self._read_on(WINDOW)
            if not block:
                break
            keep = min(self._position - WINDOW, self._start + len(self._held))
            self._drop_before(keep)
            self._held += block
        first = self._position - self._start
        found = self._held[first:] if wanted is None else self._held[first : first + size]
        self._position += len(found)
        return found

    def _drop_before(self, position: int) -> None:
        if position > self._start:
            self._held = self._held[position - self._start :]
            self._start = position
