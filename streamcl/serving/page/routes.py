"""The routes of the live page: its files, its updates, its charts; and a receipt to read in the browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from functools import cache
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from streamcl.forgetting.receipts.archive import report_css
from streamcl.serving.page.feed import MAX_VIEWERS, PageFeed

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

FILES = ("page.html", "page.css", "page.js", "icon.svg")

EVENTS = "/v1/events"


def page_routes(feed: PageFeed) -> list[Route]:
    """Return the routes of a run's page."""

    async def events(request: Request) -> Response:  # noqa: ARG001
        if feed.is_full:
            raise HTTPException(503, f"{MAX_VIEWERS} pages are open already", {"Retry-After": "30"})
        headers = {**SAFE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_event_stream(feed), headers=headers, media_type="text/event-stream")

    async def chart(request: Request) -> Response:
        size = request.query_params.get("size", "wide")
        svg = await feed.chart(request.path_params["name"], size)
        if svg is None:
            raise HTTPException(404, "there is no such chart yet")
        headers = {**SAFE, "Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'"}
        return Response(svg, media_type="image/svg+xml", headers=headers)

    return [
        Route("/", page_file),
        Route("/page/{name:str}", page_file),
        Route("/page/charts/{name:str}.svg", chart),
        Route(EVENTS, events),
    ]


async def page_file(request: Request) -> Response:
    """Return a file of the page; it holds nothing of the run."""
    name = request.path_params.get("name", "page.html")
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, "the page has no such file")
    headers = {**SAFE, "Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(content, media_type=MEDIA[name.rpartition(".")[2]], headers=headers)


def receipt_page(html: str) -> Response:
    """Return a receipt as a page of its own, whose styles are those that it came with."""
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in styles]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    policy = f"default-src 'none'; style-src {allowed}; base-uri 'none'; frame-ancestors 'none'"
    headers = {**SAFE, "Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return Response(html, media_type="text/html", headers=headers)


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for something to show, rather than a program for JSON."""
    return "text/html" in request.headers.get("accept", "")


@cache
def _files() -> dict[str, str]:
    folder = resources.files("streamcl.serving.page")
    files = {name: (folder / name).read_text("utf-8") for name in FILES}
    return {**files, "report.css": str(report_css())}


async def _event_stream(feed: PageFeed) -> AsyncIterator[bytes]:
    async for update in feed.updates():
        if update is None:
            yield b": nothing new\n\n"
        else:
            text = json.dumps(update, ensure_ascii=False, separators=(",", ":"))
            yield f"event: update\ndata: {text}\n\n".encode()
