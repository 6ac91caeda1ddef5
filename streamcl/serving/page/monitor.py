"""Serves the page of a run that somebody else carries out, or that is over, from its directory alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt
from streamcl.report.following import RunFollower
from streamcl.report.live import LearningState, RunState
from streamcl.serving.access.limits import KnownHosts, refuse_open_network
from streamcl.serving.access.security_headers import SecurityHeaders
from streamcl.serving.http_server import bind_socket, run_until_stopped
from streamcl.serving.page.feed import PageFeed
from streamcl.serving.page.routes import PageRoutes, receipt_page, wants_page
from streamcl.serving.problems import problem_response
from streamcl.serving.route_table import ROUTES
from streamcl.storage.lock import holder_of

GRACE_SECONDS = 5.0


def monitor_run(folder: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page of a run until SIGTERM or SIGINT; nothing in its directory is changed.

    Args:
        folder: of the run, which may go on in another process.
        host: an address of this machine alone.
        port: 0 takes a free one.
        say: takes the address, once the page is there.

    Raises:
        ConfigError: the address is not this machine's own, or is taken.
    """
    refuse_open_network(host)
    feed = PageFeed(folder, run_state)
    with bind_socket(host, port) as listening:
        run_until_stopped(
            build_monitor(folder, feed), listening, say, grace=GRACE_SECONDS, closing=feed.close
        )


def build_monitor(folder: Path, feed: PageFeed) -> Starlette:
    """Return the application: the page and the receipts of a run, to be read only."""
    page = PageRoutes(feed)

    async def receipt(request: Request) -> Response:
        path = newest_receipt(folder, request.path_params["request"])
        if not path.exists():
            raise HTTPException(404, "there is no receipt of such a request")
        if wants_page(request) and path.with_suffix(".html").exists():
            return receipt_page(path.with_suffix(".html").read_text("utf-8"))
        return JSONResponse(read_receipt(path).to_json())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001 - given by Starlette
        yield
        await feed.close()

    return Starlette(
        routes=[
            *(Route(each.path, getattr(page, each.name)) for each in ROUTES if each.of_page),
            Route("/v1/receipts/{request}", receipt),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(KnownHosts)],
        exception_handlers={HTTPException: _problem, ForgettingError: _damaged},
        lifespan=lifespan,
    )


def run_state(follower: RunFollower) -> RunState:
    """Return whether a process carries the run out, by the lock that this holds."""
    learning: LearningState = "stopped"
    if follower.log.finished:
        learning = "finished"
    elif holder_of(follower.folder) is not None:
        learning = "running"
    return RunState(learning, time.time())


async def _problem(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(error.status_code, error.detail, error.headers)


async def _damaged(request: Request, error: Any) -> Response:  # noqa: ARG001
    return problem_response(422, str(error))
