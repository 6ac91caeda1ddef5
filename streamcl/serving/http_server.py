"""Binds an address and answers requests there until a signal."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from streamcl.errors import ConfigError

STOPPED_BY_SIGNAL = 143
"""The exit code after a signal and a clean end (128 + SIGTERM)."""

MAX_CONNECTIONS = 512
"""Connections at a time; each may hold a body in memory."""
BACKLOG = 2048
"""Connections that the system keeps until they are taken; uvicorn's own number."""


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address. Raise ConfigError where that is impossible.

    port: 0 takes a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror}",
            hint="--port takes another one, and --port 0 any that is free",
        ) from error
    return listening


def run_until_stopped(
    app: Starlette,
    listening: socket.socket,
    say: Callable[[str], None],
    *,
    grace: float,
    closing: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Args:
        app: answers them.
        listening: a bound socket.
        say: takes the address, once connections are taken there.
        grace: seconds in which requests get their answers after the signal.
        closing: awaited after the signal; ends answers that would go on by themselves.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(grace),
    )
    listening.listen(BACKLOG)  # from here on a connection waits to be answered, and is not refused
    say(_url(listening))
    with suppress(KeyboardInterrupt):
        _Server(config, closing).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Calls `closing` before it waits for requests that are being answered."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], Awaitable[None]] | None) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down."""
        if self._closing is not None:
            await self._closing()
        await super().shutdown(sockets)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
