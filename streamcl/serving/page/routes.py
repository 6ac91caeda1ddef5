"""The routes of the live page: its files, its updates, its charts; and a receipt to read in the browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from streamcl.forgetting.receipts.archive import report_css
from streamcl.serving.access.access_control import CALLER, caller_of
from streamcl.serving.page.feed import MAX_VIEWERS, PageFeed
from streamcl.serving.page.recent_images import RecentImages
from streamcl.serving.route_table import ROUTES

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = ("page.html", "page.css", "page.js", "icon.svg")
REQUIRED_ROUTES = {
    "images": "page_image",
    "attention": "page_image",
    "labels": "labels",
    "actions": "forget",
    "requests": "receipts",
}
"""Parts of the page, and buttons in them, by the route that whoever sees them must be allowed to use."""


class PageRoutes:
    """The functions behind the routes of a run's page, with the names that the table of routes gives them."""

    def __init__(self, feed: PageFeed, images: RecentImages | None = None) -> None:
        self._feed, self._images = feed, images

    async def events(self, request: Request) -> Response:
        """Send the page and its changes, as server-sent events."""
        if self._feed.is_full:
            raise HTTPException(503, f"{MAX_VIEWERS} pages are open already", {"Retry-After": "30"})
        updates = _event_stream(self._feed, _allowed(request))
        headers = {"X-Accel-Buffering": "no"}  # a proxy passes each on at once
        return StreamingResponse(updates, headers=headers, media_type="text/event-stream")

    async def page(self, request: Request) -> Response:  # noqa: ARG002
        """Return the page, which holds nothing of the run."""
        return _file("page.html")

    async def page_file(self, request: Request) -> Response:
        """Return a file of the page, which holds nothing of the run."""
        return _file(request.path_params["name"])

    async def page_chart(self, request: Request) -> Response:
        """Return a chart as SVG."""
        svg = await self._feed.chart(request.path_params["name"], request.query_params.get("size", "wide"))
        if svg is None:
            raise HTTPException(404, "there is no such chart yet")
        return Response(svg, media_type="image/svg+xml")

    async def page_image(self, request: Request) -> Response:
        """Return one of the recent images as it came."""
        number = request.path_params["number"]
        known = number.isascii() and number.isdecimal() and len(number) < 20 and self._images is not None
        found = await run_in_threadpool(self._images.find, int(number)) if known and self._images else None
        if found is None:
            raise HTTPException(404, "this image has been dropped")
        return Response(found.data, media_type=found.media)


def _file(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, "the page has no such file")
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(content, media_type=MEDIA[name.rpartition(".")[2]], headers=headers)


def _allowed(request: Request) -> frozenset[str]:
    """Return what of REQUIRED_ROUTES the caller may see or do; all of it where no tokens are looked at."""
    if CALLER not in request.scope:
        return frozenset(REQUIRED_ROUTES)
    caller, rules = caller_of(request), {rule.name: rule for rule in ROUTES}
    return frozenset(part for part, name in REQUIRED_ROUTES.items() if caller.may(rules[name]))


def receipt_page(html: str) -> Response:
    """Return a receipt as a page of its own, whose styles are those that it came with."""
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in styles]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    policy = f"default-src 'none'; style-src {allowed}; base-uri 'none'; frame-ancestors 'none'"
    return Response(
        html, media_type="text/html", headers={"Content-Security-Policy": policy, "Vary": "Accept"}
    )


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for something to show, rather than a program for JSON."""
    return "text/html" in request.headers.get("accept", "")


@cache
def _files() -> dict[str, str]:
    folder = resources.files("streamcl.serving.page")
    files = {name: (folder / name).read_text("utf-8") for name in FILES}
    return {**files, "report.css": str(report_css())}


async def _event_stream(feed: PageFeed, allowed: frozenset[str]) -> AsyncIterator[bytes]:
    yield _event({"allowed": sorted(allowed)})
    async for update in feed.updates():
        if update is None:
            yield b": nothing new\n\n"
            continue
        parts = update.get("parts", {})
        shown = {name: html for name, html in parts.items() if name not in REQUIRED_ROUTES or name in allowed}
        yield _event({**update, "parts": shown})


def _event(update: Mapping[str, Any]) -> bytes:
    text = json.dumps(update, ensure_ascii=False, separators=(",", ":"))
    return f"event: update\ndata: {text}\n\n".encode()
