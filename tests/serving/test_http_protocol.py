"""What does not come as far as the application is answered in its way: no HTTP, too many requests."""

from __future__ import annotations

import json
import socket
import threading

import pytest
import uvicorn
from asgi_calls import call
from conditions import wait_for
from starlette.responses import PlainTextResponse

from streamcl.serving.access.security_headers import SECURITY_HEADERS
from streamcl.serving.http_protocol import RequestLimit
from streamcl.serving.http_server import NetworkOptions, bind_socket, server_config


async def hello(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await PlainTextResponse("hello")(scope, receive, send)


@pytest.fixture
def address():
    server = uvicorn.Server(server_config(hello, NetworkOptions(), grace=5))
    with bind_socket("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_for(lambda: server.started)
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


def answered(address, request):
    with socket.create_connection(address, 60) as connection:
        connection.sendall(request)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_problem_with_the_security_headers(address, request_):
    status, headers, body = answered(address, request_)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(body)["status"] == 400
    assert {
        name.lower(): value.lower() for name, value in SECURITY_HEADERS.items()
    }.items() <= headers.items()
    status, headers, body = answered(
        address, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert (status, body) == (200, b"hello")


def test_more_requests_at_a_time_than_are_allowed_are_refused():
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope["path"])
        await PlainTextResponse("hello")(scope, receive, send)

    limited = RequestLimit(inner, 1)
    assert call(limited, "GET /")[0] == call(limited, "GET /")[0] == 200  # one after the other
    full = RequestLimit(inner, 0)
    status, headers, body = call(full, "GET /")
    assert (status, headers["retry-after"], json.loads(body)["status"]) == (503, "1", 503)
    assert {name.lower(): value for name, value in SECURITY_HEADERS.items()}.items() <= headers.items()
    assert len(seen) == 2
