"""Reads the images of a bucket, or of any other listing that fsspec knows, as they are put there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from streamcl.errors import BadRecord, ConfigError, MissingExtra, SourceError
from streams.live.files.listing import ListingReader, PathLayout, Replaced
from streams.live.files.taken_files import ListedFile
from streams.user.records import RecordPolicy

CONNECTIONS = 8  # objects that are read at once; S3 answers the first byte after 20 to 100 ms
BODY_ATTEMPTS = 3  # to read a body that comes shorter than its Content-Length
S3_DEFAULTS: Mapping[str, Any] = {
    "max_concurrency": 1,  # s3fs otherwise asks for an object's size before it reads it
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}},
}
"""Options of s3fs: an outage is noticed within seconds, and the reader itself tries again."""

TAGS = ("ETag", "etag", "md5Hash")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""Keys under which the file systems of fsspec give an object's version and its time."""
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}
CUT_BODY = {"ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError"}
"""Names of exceptions of botocore and aiohttp, which are no OSErrors."""


class ObjectReader(ListingReader):
    """The images below a URL, each once, in the order of their times.

    An object with an ETag is complete as soon as it is listed; a file without one when two listings find it
    with the same size and time. A body that stays shorter than listed, or an object that may not be read, is
    a bad record. An outage of the other end is waited for.

    Args:
        url: "s3://bucket/prefix", or of another file system of fsspec whose package is installed.
        layout, interval, replaced, clock, sleep, policy: see `streams.live.files.listing.ListingReader`.
        name: of the stream; the URL without its scheme where it is None.
        options: of the file system, such as {"endpoint_url": "http://localhost:9000"} or {"anon": true}.
    """

    def __init__(
        self,
        url: str,
        layout: PathLayout = "classes",
        interval: float = 10.0,
        replaced: Replaced = "new_record",
        *,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
        policy: RecordPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fs, self._root = _file_system(url, options or {})
        self._reached = False
        super().__init__(
            name or self._root.strip("/"),
            layout=layout,
            interval=interval,
            replaced=replaced,
            clock=clock,
            sleep=sleep,
            policy=policy,
        )

    def _listing(self) -> list[ListedFile]:
        """Return the image objects by time, then by key."""
        with self._refused():
            found = self._fs.find(self._root, detail=True)
        self._reached = True
        infos = {
            path: info
            for info in found.values()
            if info["type"] == "file" and self.accepts(path := self._relative(info["name"]))
        }
        times = {path: _seconds(info) for path, info in infos.items()}
        return [_listed(path, infos[path]) for path in sorted(infos, key=lambda path: (times[path], path))]

    def _is_complete(self, file: ListedFile) -> bool:
        return isinstance(file.version, str) or super()._is_complete(file)

    def _stat(self, path: str) -> ListedFile | None:
        if not self.accepts(path):
            return None
        try:
            with _os_errors():
                return _listed(path, self._fs.info(f"{self._root}/{path}"))
        except FileNotFoundError:
            return None

    def _contents(self, files: Sequence[ListedFile]) -> list[bytes | BadRecord]:
        if getattr(self._fs, "async_impl", False) and len(files) > 1:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                found = list(pool.map(self._content, files))
        else:
            found = [self._content(file) for file in files]
        if any(isinstance(each, PermissionError) for each in found):
            self._listing()  # raises where the credentials have expired, so that no object is at fault
        return [
            BadRecord(f"{file.path} may not be read: {each}") if isinstance(each, PermissionError) else each
            for file, each in zip(files, found, strict=True)
        ]

    def _content(self, file: ListedFile) -> bytes | BadRecord | PermissionError:
        try:
            data = self._body(file)
            if data is None or not self._is_listed(file, data):
                state = (
                    "is cut off" if self._stat(file.path) == file else "was replaced before it could be read"
                )
                return BadRecord(f"{file.path} {state}")
        except FileNotFoundError:
            return BadRecord(f"{file.path} is gone")
        except PermissionError as error:
            return error
        return data

    def _body(self, file: ListedFile) -> bytes | None:
        """Return the content; None where it has another length than was listed, at several attempts."""
        for attempt in range(BODY_ATTEMPTS):
            if attempt:
                self._sleep(0.1 * 2**attempt)
            try:
                with _os_errors():
                    data: bytes = self._fs.cat_file(f"{self._root}/{file.path}")
            except EOFError:
                continue
            if len(data) == file.size:
                return data
        return None

    def _is_listed(self, file: ListedFile, data: bytes) -> bool:
        """Return whether this is the content that was listed; most tags are the MD5 of the content."""
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == file.version:
            return True
        return self._stat(file.path) == file

    def _relative(self, name: str) -> str:
        return name.removeprefix(self._root).lstrip("/")

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Raise SourceError where the listing is refused from the start, or the bucket does not exist."""
        try:
            with _os_errors():
                yield
        except FileNotFoundError as error:
            raise SourceError(f"{self.name} does not exist: {error}", hint="make the bucket first") from error
        except PermissionError as error:
            if self._reached:
                raise
            raise SourceError(
                f"{self.name} cannot be listed: {error}", hint="check the credentials, or `options`"
            ) from error


def _file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the file system of a URL, and the path of its root there."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        given = {"use_listings_cache": False, "skip_instance_cache": True}
        given |= S3_DEFAULTS if scheme in {"s3", "s3a"} else {}
        fs, root = url_to_fs(url, **given | dict(options))
    except ImportError as error:
        ours = scheme in {"s3", "s3a"} or (error.name or "").startswith("fsspec")
        hint = 'pip install "streamcl[s3]"' if ours else "install the package that is named"
        raise MissingExtra(f"{scheme}:// cannot be read: {error}", hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL that fsspec can read: {error}") from error
    return fs, root.rstrip("/")


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError for the exceptions of the client libraries; EOFError where a body was cut off."""
    try:
        yield
    except (OSError, SourceError):
        raise
    except Exception as error:  # botocore's and aiohttp's errors have no common base class
        kind = type(error).__name__
        if kind in CUT_BODY:
            raise EOFError(str(error)) from error
        if kind in NO_CREDENTIALS:
            raise PermissionError(str(error)) from error
        raise ConnectionError(f"{kind}: {error}") from error


def _listed(path: str, info: Mapping[str, Any]) -> ListedFile:
    """Return the file of an entry; its version is the ETag, or the time in nanoseconds where it has none."""
    tag = next((str(info[key]).strip('"') for key in TAGS if info.get(key)), None)
    return ListedFile(path, info["size"], tag or int(_seconds(info) * 1e9))


def _seconds(info: Mapping[str, Any]) -> float:
    """Return the time of the last change; 0 where the file system does not say it."""
    found = next((info[key] for key in TIMES if info.get(key)), 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)
