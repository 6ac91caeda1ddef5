"""Binds an address and answers requests there until a signal."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from streamcl.errors import ConfigError
from streamcl.serving.http_protocol import ProblemProtocol, RequestLimit

MAX_HTTP_REQUESTS = 512
"""Requests at a time; each may hold a body in memory."""
BACKLOG = 2048
"""Connections that the system keeps until they are taken; uvicorn's own number."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How requests come from the network.

    tls_cert, tls_key: PEM files of a certificate, with its chain, and of its key. proxies: addresses or
    networks of proxies, whose X-Forwarded-For and X-Forwarded-Proto are believed; those of others are not.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    proxies: tuple[str, ...] = ()

    @property
    def encrypted(self) -> bool:
        """Whether requests come by TLS, to this server or to the proxy before it."""
        return self.tls_cert is not None or bool(self.proxies)

    def check(self) -> None:
        """Raise ConfigError where the certificate and key cannot be used, or a proxy is no address."""
        for each in self.proxies:
            try:
                ipaddress.ip_network(each)
            except ValueError as error:
                hint = "give an address, or a network such as 10.0.0.0/8"
                raise ConfigError(f"--proxy {each}: {error}", hint=hint) from error
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key are given together")
        if self.tls_cert is not None:
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                    self.tls_cert, self.tls_key, password=_no_password
                )
            except (OSError, ValueError) as error:  # SSLError is an OSError
                reason = getattr(error, "strerror", None) or error
                raise ConfigError(f"{self.tls_cert} with {self.tls_key} cannot be used: {reason}") from error


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
    network: NetworkOptions | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Args:
        app: answers them.
        listening: a bound socket.
        say: takes the address, once connections are taken there.
        grace: seconds in which requests get their answers after the signal.
        closing: awaited after the signal; ends answers that would go on by themselves.
        network: the certificate and the proxies; by default there are none.
    """
    network = network or NetworkOptions()
    config = server_config(app, network, grace=grace)
    listening.listen(BACKLOG)  # from here on a connection waits to be answered, and is not refused
    say(_url(listening, "http" if network.tls_cert is None else "https"))
    with suppress(KeyboardInterrupt):
        _Server(config, closing).run(sockets=[listening])


def server_config(app: Starlette, network: NetworkOptions, *, grace: float) -> uvicorn.Config:
    """Return the configuration of uvicorn, in which proxy headers of others than the proxies are ignored."""
    return uvicorn.Config(
        RequestLimit(app, MAX_HTTP_REQUESTS),
        http=ProblemProtocol,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(network.proxies),
        forwarded_allow_ips=list(network.proxies),
        ssl_certfile=network.tls_cert,
        ssl_keyfile=network.tls_key,
        timeout_graceful_shutdown=int(grace),
    )


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


def _url(listening: socket.socket, scheme: str) -> str:
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _no_password() -> str:
    """Stand for the prompt that OpenSSL would otherwise wait at."""
    raise ValueError("the key is encrypted; give one without a password")
