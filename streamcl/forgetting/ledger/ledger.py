"""The ledger of forgetting requests: durable before they are acknowledged, executed once, named by hashes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from streamcl.errors import ForgettingError, RefusedRequest
from streamcl.forgetting.ledger.request_fields import canonical_fields, name_in, parsed_fields
from streamcl.requests.status import ENDED, RequestStatus
from streamcl.storage.canonical_json import canonical_json
from streamcl.storage.sqlite import SqliteFile

ErasedKind: TypeAlias = Literal["sample", "subject", "class", "part"]

LEDGER = "ledger.sqlite"
"""The file's name in a run directory."""

MEMORY_LIMIT = 1_000_000  # tombstones looked up in memory, some 100 bytes each; past it, in the file
ALLOWED: Mapping[RequestStatus, frozenset[RequestStatus]] = {
    "received": frozenset({"started", "refused"}),
    "started": frozenset({"started", "done", "failed", "refused"}),
    "failed": frozenset({"started", "received"}),
    "done": frozenset(),
    "refused": frozenset(),
}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One request. `body` is what was submitted, None after `scrub`; times in seconds since the epoch."""

    position: int
    id: str
    status: RequestStatus
    body: Mapping[str, Any] | None
    reason: str | None
    received: float
    finished: float | None


class Ledger(AbstractContextManager["Ledger"]):
    """Forgetting requests in the order of their arrival, and tombstones of what they erased.

    Changes are durable when a method returns. Several processes may use one ledger; each waits up to
    `timeout` seconds for the other. A Ledger belongs to the thread that opened it and does not cross a fork.

    Tombstones and keys are stored as hashes under a key that is not in the run directory (see
    `streamcl.storage.hash_secret`), so whoever holds the file alone can neither read a name nor test one. The
    request's own id is stored as it is, so it should name nobody.

    Every method raises ForgettingError where the file is damaged, busy for too long, or cannot be written;
    opening it raises ConfigError where the secret of the hashes is missing.
    """

    def __init__(self, path: Path, *, timeout: float = 10.0, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(path, timeout)
        self._clock = clock
        self._version = -1
        self._pending: list[LedgerEntry] | None = None  # None: to be read where they are needed
        self._tombstones: set[bytes] | None = set()  # None: too many for the memory
        self._is_stale = True  # whether these are to be read again

    def submit(self, fields: Mapping[str, Any]) -> LedgerEntry:
        """Add a request; it is durable when this returns, so it may be acknowledged then and not before.

        fields: a JSON object with "id", and "key" where the sender repeats itself (else the id is the key).
        The same key again returns the first entry and changes nothing. Raise RefusedRequest where a key
        or an id comes back with other content, or where the fields are not JSON.
        """
        body, request = canonical_fields(fields), name_in(fields, "id")
        key = self._file.digest("key", request if fields.get("key") is None else name_in(fields, "key"))
        digest = self._digest(fields)
        with self._file.transaction() as run:
            if not run("SELECT 1 FROM requests WHERE key = ? OR id = ?", (key, request)).fetchall():
                run(  # only then: an insertion that is ignored would use up a position
                    "INSERT INTO requests (id, key, digest, body, status, received)"
                    " VALUES (?, ?, ?, ?, 'received', ?)",
                    (request, key, digest, body, self._clock()),
                )
        self._pending = None
        found = self._file.query(
            "SELECT position, digest FROM requests WHERE key = ? OR id = ?", key, request
        )
        if len(found) != 1 or found[0][1] != digest:
            raise RefusedRequest(
                f"request {request!r} has the id or the key of another request with different content",
                hint="repeat a request unchanged, or give a new request a new id and key",
            )
        return self._entries("WHERE position = ?", found[0][0])[0]

    def start(self, request: str) -> LedgerEntry:
        """Record that the erasure begins; again after a crash or a failure is right."""
        return self._advance(request, "started")

    def finish(self, *requests: str) -> None:
        """Record, all at once, that erasures are committed and that the older checkpoints are removed."""
        self._change(requests, "done")

    def fail(self, request: str, reason: str) -> LedgerEntry:
        """Record that the erasure failed; it may be started again."""
        return self._advance(request, "failed", reason)

    def retry(self, request: str) -> LedgerEntry:
        """Make a request that has failed pending again; one that is pending stays so.

        Raise ForgettingError where it is done or refused.
        """
        entry = self.entry(request)
        if entry.status in {"done", "refused"}:
            raise ForgettingError(
                f"request {request!r} is {entry.status}, and only a failed request can be tried again",
                hint="make a new request, with another key",
            )
        return self._advance(request, "received") if entry.status == "failed" else entry

    def find(self, name: str) -> LedgerEntry:
        """Return the request of this id or key. Raise ForgettingError where there is none."""
        return self._one(name, self._entries("WHERE id = ? OR key = ?", name, self._file.digest("key", name)))

    def refuse(self, request: str, reason: str) -> LedgerEntry:
        """Record that the request will not be executed, and why."""
        return self._advance(request, "refused", reason)

    def scrub(self, *requests: str) -> None:
        """Overwrite the contents of finished requests; their ids, times, hashes and tombstones stay.

        The bytes are gone from the file and its journal when this returns. Raise ForgettingError where a
        request is not finished, or another process keeps the journal in use: then scrub again.
        """
        with self._file.transaction() as run:
            for request in requests:
                if (entry := self.entry(request)).status not in {"done", "refused"}:
                    raise ForgettingError(
                        f"request {request!r} is {entry.status}, and only a finished request can be scrubbed"
                    )
                run("UPDATE requests SET body = NULL, reason = NULL WHERE id = ?", (request,))
        if not self._file.empty_journal():
            raise ForgettingError(
                f"{self._file.path} is in use, so its journal still holds request {requests[0]!r}",
                hint="scrub again when the other process has closed it",
            )

    def entry(self, request: str) -> LedgerEntry:
        """Return the request of this id. Raise ForgettingError where there is none."""
        return self._one(request, self._entries("WHERE id = ?", request))

    def entries(self) -> list[LedgerEntry]:
        """Return every request, in the order of arrival."""
        return self._entries("")

    def pending(self) -> list[LedgerEntry]:
        """Return the requests received or started, in the order of arrival. Cheap where nothing has changed.

        Includes what other processes wrote, their tombstones too.
        """
        self.refresh()
        if self._pending is None:
            self._pending = self._entries("WHERE status IN ('received', 'started')")
        return list(self._pending)

    def failed(self) -> list[LedgerEntry]:
        """Return the requests that have failed and are not pending again, in the order of arrival."""
        return self._entries("WHERE status = 'failed'")

    def unscrubbed(self) -> list[str]:
        """Return the ids of the requests that are done or refused and whose contents are still there."""
        found = "SELECT id FROM requests WHERE status IN ('done', 'refused') AND body IS NOT NULL"
        return [name for (name,) in self._file.query(found)]

    @property
    def position(self) -> int:
        """The position of the newest request; 0 where there is none. Positions are never used twice."""
        return int(self._file.query("SELECT COALESCE(MAX(position), 0) FROM requests")[0][0])

    def add_tombstones(self, request: str, kind: ErasedKind, values: Iterable[str]) -> None:
        """Set tombstones for what the request erased; repeating it is harmless."""
        if not (digests := [self._file.digest(kind, value) for value in values]):
            return
        position = self.entry(request).position
        with self._file.transaction() as run:
            for digest in digests:
                run("INSERT OR IGNORE INTO tombstones (digest, position) VALUES (?, ?)", (digest, position))
        if self._tombstones is not None:
            self._tombstones.update(digests)

    def is_tombstoned(self, kind: ErasedKind, value: str) -> bool:
        """Return whether a name was erased; by other processes, as of the last `refresh` or later."""
        digest = self._file.digest(kind, value)
        if self._is_stale:
            self._read_tombstones()
        if self._tombstones is not None:
            return digest in self._tombstones
        return bool(self._file.query("SELECT 1 FROM tombstones WHERE digest = ?", digest))

    def erased_by(self, kind: ErasedKind, value: str) -> str | None:
        """Return the request that erased the sample id, subject or class first; None where none did."""
        if not self.is_tombstoned(kind, value):
            return None
        found = self._file.query(
            "SELECT id FROM requests JOIN tombstones USING (position) WHERE tombstones.digest = ?",
            self._file.digest(kind, value),
        )
        return str(found[0][0]) if found else None

    def remember(self, name: str, value: object) -> None:
        """Store a value that JSON has, to be looked up by its name in another process."""
        with self._file.transaction() as run:
            run("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, canonical_json(value)))

    def recall(self, name: str) -> Any:
        """Return the value that was stored under a name; None where there is none."""
        found = self._file.query("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    def fingerprint(self, kind: str, value: str) -> str:
        """Return a keyed hash in hexadecimal, for receipts, which name nothing."""
        return self._file.digest(kind, value).hex()

    def refresh(self) -> None:
        """Read what other processes wrote."""
        if (version := self._file.version()) != self._version:
            self._version, self._pending, self._is_stale = version, None, True

    def close(self) -> None:
        """Close the file; harmless twice."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, name: str, found: Sequence[LedgerEntry]) -> LedgerEntry:
        if not found:
            raise ForgettingError(f"there is no request {name!r} in {self._file.path}")
        return found[0]

    def _advance(self, request: str, to: RequestStatus, reason: str | None = None) -> LedgerEntry:
        self._change([request], to, reason)
        return self.entry(request)

    def _change(self, requests: Iterable[str], to: RequestStatus, reason: str | None = None) -> None:
        finished = self._clock() if to in ENDED else None
        with self._file.transaction() as run:
            for request in requests:
                if to not in ALLOWED[now := self.entry(request).status]:
                    raise ForgettingError(f"request {request!r} is {now} and cannot become {to}")
                run(
                    "UPDATE requests SET status = ?, reason = ?, finished = ? WHERE id = ?",
                    (to, reason, finished, request),
                )
        self._pending = None

    def _read_tombstones(self) -> None:
        """Read the tombstones, where there are more than are known; none is ever removed."""
        count = self._file.query("SELECT COUNT(*) FROM tombstones")[0][0]
        if count > MEMORY_LIMIT:
            self._tombstones = None
        elif self._tombstones is None or len(self._tombstones) != count:
            self._tombstones = {bytes(row[0]) for row in self._file.query("SELECT digest FROM tombstones")}
        self._is_stale = False

    def _digest(self, fields: Mapping[str, Any]) -> bytes:
        """Return the hash of the content without its offset, since a stream may repeat it at others."""
        return self._file.digest("body", canonical_fields({k: v for k, v in fields.items() if k != "offset"}))

    def _entries(self, where: str, *values: Any) -> list[LedgerEntry]:
        columns = "position, id, status, body, reason, received, finished, digest"
        rows = self._file.query(f"SELECT {columns} FROM requests {where} ORDER BY position", *values)
        return [self._entry(row) for row in rows]

    def _entry(self, row: tuple[Any, ...]) -> LedgerEntry:
        position, request, status, body, reason, received, finished, digest = row
        fields = None if body is None else parsed_fields(body)
        if fields is not None and self._digest(fields) != digest:
            raise self._file.damage(f"the content of request {request!r} is not what was submitted")
        return LedgerEntry(position, request, status, fields, reason, received, finished)
