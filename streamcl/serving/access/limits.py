"""Limits of a request: its host and origin, the size of its body and the time that it takes to come."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamcl.errors import ConfigError
from streamcl.serving.problems import problem_response

TOKEN_HINT = "streamcl token add NAME --role officer makes one"


def refuse_open_network(host: str, *, has_tokens: bool = False) -> None:
    """Raise ConfigError for an address that others can reach, where no token tells them apart."""
    if not (is_local(host) or has_tokens):
        raise ConfigError(
            f"--host {host}: others can reach this address, and there is no token to tell them apart by",
            hint=f"{TOKEN_HINT}; 127.0.0.1 needs none",
        )


class KnownHosts:
    """Refuses what a page of another site makes a browser send: unknown names of this host, other origins.

    A page of a site can make its own name mean this host, but it cannot choose an address as its name.

    Args:
        app: takes what is not refused.
        names: known beside localhost and loopback addresses.
        any_address: every address is known; for a server that believes nobody by the address alone.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str] = (), any_address: bool = False) -> None:
        self._app, self._any_address = app, any_address
        self._names = frozenset(each.lower() for each in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http" and (reason := self._unknown(scope["scheme"], dict(scope["headers"]))):
            await problem_response(403, reason)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _unknown(self, scheme: str, headers: dict[bytes, bytes]) -> str | None:
        """Return why the host or the origin of a request is not known, or None."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = _name_of(host).lower().removesuffix(".")
        if not (is_local(name) or name in self._names or (self._any_address and _is_address(name))):
            return "this server is not reached by that name; --public-name names others than localhost"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") != f"{scheme}://{host}":
            return "requests from pages of other sites are refused"
        return None


class BodyLimits:
    """Ends a request whose body is larger than `max_bytes` bytes, or is not there after `seconds`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a body that is counted as it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
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
            if taken > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> str:
        return f"a body may have {self._max_bytes} bytes"


def _name_of(host: str) -> str:
    """Return the host of a Host header, without its port and the brackets of an IPv6 address."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.removeprefix("[").removesuffix("]")


def is_local(name: str) -> bool:
    """Return whether a name or an address means this machine alone."""
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
