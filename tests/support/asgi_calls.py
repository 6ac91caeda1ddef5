"""Requests to an ASGI application without a socket, whose body comes in the parts that a test wants."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from streamcl.factory.inbox import Inbox
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.serving.access.access_control import AccessOptions
from streamcl.serving.app import build_app
from streamcl.serving.prediction.batching import Batcher
from streamcl.serving.prediction.pool import PredictorOptions, PredictorPool
from streamcl.serving.service import ServedRun, ServingService


def call(
    app: Any,
    line: str,
    *,
    headers: dict[str, str] | None = None,
    body: list[bytes | float] = (),
    leave_after: int = 1,
):
    """Return status, headers and body. A number in `body` is a pause in seconds before what follows.

    leave_after: parts of an answer without an end after which the caller leaves.
    """

    async def exchange():
        method, _, path = line.partition(" ")
        path, _, query = path.partition("?")
        given = {"host": "localhost", **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        }
        parts, sent, complete, leave = list(body), [], False, asyncio.Event()

        async def receive():
            nonlocal complete
            if complete:
                await leave.wait()
                return {"type": "http.disconnect"}
            while parts and isinstance(parts[0], float):
                await asyncio.sleep(parts.pop(0))
            data = parts.pop(0) if parts else b""
            complete = not parts
            return {"type": "http.request", "body": data, "more_body": bool(parts)}

        async def send(message):
            sent.append(message)
            if sum(bool(each.get("body")) for each in sent) >= leave_after:
                leave.set()

        await app(scope, receive, send)
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(each.get("body", b"") for each in sent[1:])

    return asyncio.run(exchange())


NO_INBOX = Inbox()


ANYBODY = AccessOptions()


def application(folder: Path, *, access=ANYBODY, alive=True, capacity=8, inbox=NO_INBOX, lag=None, **limits):
    """The application over a run without any predictor; by default as on a loopback address."""
    Ledger(folder / LEDGER).close()
    batcher = Batcher(max_batch=4, max_delay=0.0, capacity=capacity)
    pool = PredictorPool(folder, batcher, PredictorOptions())
    service = ServingService(ServedRun(folder, "run", inbox), batcher, pool, lambda: alive, lambda: lag)
    return build_app(service, access, **limits)
