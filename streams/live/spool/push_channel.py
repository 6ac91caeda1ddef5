"""The channel by which another process of this machine pushes records into a spool, durable once answered."""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.errors import BadRecord, SourceError, SpoolFull
from streamcl.storage.private_files import write_private

ADDRESS = "push.json"
"""The file in the spool's folder with the port and the secret of who listens, readable by its owner alone."""
MAX_PUSH_HEAD_BYTES = 4 * 2**20
"""Bytes of the JSON line before the images of a message."""
MAX_PUSH_BYTES = 256 * 2**20
"""Bytes of the images of a message."""
REPLY_TIMEOUT = 30.0
"""Seconds that either end waits for the other."""
LOOPBACK = "127.0.0.1"

PushedRecord = Mapping[str, Any]
"""A record with its encoded "image", or the label of an earlier one; see `SpoolFormat` and `label_in`."""
_FAULTS: Mapping[str, type[SourceError | BadRecord]] = {
    "bad": BadRecord,
    "full": SpoolFull,
    "closed": SourceError,
}


@dataclass(frozen=True, slots=True)
class PushReceipt:
    """The answer to a message: the ids of its records, and how many of them had come before."""

    ids: tuple[str, ...]
    repeated: int = 0


def push(folder: Path, records: Sequence[PushedRecord]) -> PushReceipt:
    """Hand records to the process that holds the spool in `folder`; on return they survive a crash.

    All of them are taken, or none. After an error nobody knows whether they were: sending them again with
    the same ids does no harm.

    Raises:
        BadRecord: one of them cannot be read.
        SpoolFull: there is no room.
        SourceError: no process listens, or it fails.
    """
    try:
        address = json.loads((folder / ADDRESS).read_text(encoding="utf-8"))
        with socket.create_connection((LOOPBACK, address["port"]), REPLY_TIMEOUT) as connection:
            _send(connection, address["secret"], records)
            with connection.makefile("rb") as answers:
                reply = json.loads(answers.readline(MAX_PUSH_HEAD_BYTES))
    except (OSError, ValueError) as error:
        raise SourceError("no process learns the stream now", hint="send it again in a while") from error
    if "fault" in reply:
        raise _FAULTS[reply["fault"]](reply["reason"])
    return PushReceipt(tuple(reply["ids"]), reply["repeated"])


def _send(connection: socket.socket, secret: str, records: Sequence[PushedRecord]) -> None:
    images = [each.get("image", b"") for each in records]
    fields = [{name: value for name, value in each.items() if name != "image"} for each in records]
    sized = [
        {"fields": each, "image": len(image) if "image" in record else None}
        for each, image, record in zip(fields, images, records, strict=True)
    ]
    connection.sendall(json.dumps({"secret": secret, "records": sized}).encode() + b"\n")
    for image in images:
        connection.sendall(image)


@contextmanager
def listening(folder: Path, take: Callable[[Sequence[PushedRecord]], PushReceipt]) -> Iterator[None]:
    """Take messages in threads while the block runs.

    Args:
        folder: of the spool; the address lies there meanwhile.
        take: writes the records of one message, called in any thread; raises BadRecord or SourceError.
    """
    secret = secrets.token_hex(32)
    with _Server(secret, take) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="streamcl-push", daemon=True)
        thread.start()
        address = {"port": server.server_address[1], "secret": secret}
        write_private(folder / ADDRESS, json.dumps(address).encode())
        try:
            yield
        finally:
            (folder / ADDRESS).unlink(missing_ok=True)
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, secret: str, take: Callable[[Sequence[PushedRecord]], PushReceipt]) -> None:
        self.secret, self.take = secret, take
        super().__init__((LOOPBACK, 0), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    """One message and its answer."""

    timeout = REPLY_TIMEOUT
    server: _Server

    def handle(self) -> None:
        """Take the message, where its secret is right; answer nothing to anything else."""
        try:
            message = json.loads(self.rfile.readline(MAX_PUSH_HEAD_BYTES))
            if not hmac.compare_digest(str(message["secret"]), self.server.secret):
                return
            records = [self._record(each) for each in message["records"]]
        except (OSError, ValueError, KeyError, TypeError):  # cut off, or from somebody else
            return
        self.wfile.write(json.dumps(self._answer(records)).encode() + b"\n")

    def _answer(self, records: Sequence[PushedRecord]) -> dict[str, Any]:
        try:
            receipt = self.server.take(records)
        except (BadRecord, SourceError) as error:
            kind = next(name for name, each in _FAULTS.items() if isinstance(error, each))
            return {"fault": kind, "reason": str(error)}
        return {"ids": receipt.ids, "repeated": receipt.repeated}

    def _record(self, sized: Mapping[str, Any]) -> PushedRecord:
        if sized["image"] is None:
            return dict(sized["fields"])
        if not 0 <= sized["image"] <= MAX_PUSH_BYTES:
            raise ValueError
        image = self.rfile.read(sized["image"])
        if len(image) < sized["image"]:
            raise ValueError
        return {**sized["fields"], "image": image}
