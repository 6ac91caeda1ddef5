"""Answers what does not come as far as the application, in its way: no HTTP, or too many requests."""

from __future__ import annotations

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from streamcl.serving.access.security_headers import SECURITY_HEADERS
from streamcl.serving.problems import problem_response

CLOSING = {"Connection": "close"}


class ProblemProtocol(H11Protocol):
    """HTTP/1.1 whose answer to what is no HTTP is a problem document with the security headers."""

    def send_400_response(self, msg: str) -> None:
        """Answer 400, and end the connection."""
        answer = problem_response(400, msg.rstrip("."), {**SECURITY_HEADERS, **CLOSING})
        parts = (
            h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


class RequestLimit:
    """Refuses requests beyond `limit` that are being answered, each of which may hold a body in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit, self._answered = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._answered >= self._limit:
            headers = {**SECURITY_HEADERS, **CLOSING, "Retry-After": "1"}
            await problem_response(503, "too many requests at a time", headers)(scope, receive, send)
            return
        self._answered += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._answered -= 1
