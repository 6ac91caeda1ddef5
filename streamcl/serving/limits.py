"""Limits of a request: its host and origin, the size of its body and the time that it takes to come."""

from __future__ import annotations

import asyncio
import ipaddress

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamcl.errors import ConfigError
from streamcl.serving.problems import problem_response


def refuse_open_network(host: str) -> None:
    """Raise ConfigError for an address that others can reach: the server knows no tokens yet."""
    if not _is_local(host):
        raise ConfigError(
            f"--host {host}: only this machine's own addresses can be served, since anybody who reaches the "
            "server may ask it to forget, and it cannot tell people apart by tokens yet",
            hint="serve on 127.0.0.1; from elsewhere use an SSH tunnel, or a proxy that checks who asks",
        )


class LocalRequests:
    """Refuses what a page of another site makes a browser send: other names of this host, other origins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http" and (reason := _foreign(dict(scope["headers"]))):
            await problem_response(403, reason)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyLimits:
    """Ends a request whose body is larger than `most` bytes, or is not there after `seconds`."""

    def __init__(self, app: ASGIApp, *, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a body that is counted as it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most:
            await problem_response(413, self._too_large())(scope, receive, send)
            return
        taken, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body was not complete within {self._seconds:g} s") from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._most:
                raise HTTPException(413, self._too_large())
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> str:
        return f"a body may have {self._most} bytes"


def _foreign(headers: dict[bytes, bytes]) -> str | None:
    """Return why a request does not come from this machine's own user, or None."""
    host = headers.get(b"host", b"").decode("latin-1")
    if not _is_local(_name_of(host)):
        return "this server is reached by the name localhost or a loopback address only"
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1") != f"http://{host}":
        return "requests from pages of other sites are refused"
    return None


def _name_of(host: str) -> str:
    """Return the host of a Host header, without its port and the brackets of an IPv6 address."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.removeprefix("[").removesuffix("]")


def _is_local(name: str) -> bool:
    """Return whether a name means this machine alone."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
