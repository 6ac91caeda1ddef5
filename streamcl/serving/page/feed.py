"""Keeps the live page of one run up to date for all who look at it; nothing is read while nobody does."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from streamcl.report.charts import NARROW, WIDE, Curve, draw
from streamcl.report.following import RunFollower
from streamcl.report.live import LivePage, RunState, live_page

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
CHART_SECONDS = 5.0
"""A chart takes some 80 ms to draw, which slow predictions down where it is done more often."""
KEEP_ALIVE_SECONDS = 15.0
"""So often something is sent, for proxies that close silent connections, and to notice a reader that left."""
MAX_VIEWERS = 32
SIZES = {"wide": WIDE, "narrow": NARROW}


class _Change(NamedTuple):
    version: int
    value: Any


class PageFeed:
    """The live page of a run, and its changes.

    Args:
        folder: of the run.
        state: returns what is not in the run's records, given these; called in a thread.
        more: returns parts of the page that are not of the run directory, as HTML by name; in a thread, too.
    """

    def __init__(
        self,
        folder: Path,
        state: Callable[[RunFollower], RunState],
        more: Callable[[RunFollower], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._follower, self._state, self._more = RunFollower(folder), state, more
        self._content: dict[tuple[str, str], _Change] = {}
        self._curves: dict[str, Curve] = {}
        self._svg: dict[tuple[str, str], tuple[Curve, str]] = {}
        self._drawing = threading.Lock()  # matplotlib's settings are the process's
        self._version, self._charted = 0, float("-inf")
        self._refreshing, self._changed = asyncio.Lock(), asyncio.Condition()
        self._viewers, self._closed = 0, False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether as many pages are open as are served at a time."""
        return self._viewers >= MAX_VIEWERS

    @property
    def is_following(self) -> bool:
        """Whether the run is being read: as long as somebody looks."""
        return self._task is not None and not self._task.done()

    async def updates(self) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the whole page, then its changes, until `close`; None where there was none for a while."""
        self._viewers += 1
        try:
            seen = 0
            await self._refresh()  # what was kept since somebody looked may have been erased
            if not self.is_following:
                self._task = asyncio.create_task(self._keep_up())
            while not self._closed:
                yield self._since(seen) if self._version > seen else None
                seen = self._version
                await self._wait_for_change(seen)
        finally:
            self._viewers -= 1

    async def chart(self, name: str, size: str) -> str | None:
        """Return a chart as SVG; None where there is none of that name or size."""
        curve = self._curves.get(name)
        return None if curve is None or size not in SIZES else await run_in_threadpool(self._draw, name, size)

    async def close(self) -> None:
        """End all updates."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        async with self._changed:
            self._changed.notify_all()

    async def _keep_up(self) -> None:
        while self._viewers and not self._closed:
            await asyncio.sleep(0 if self._follower.behind else REFRESH_SECONDS)
            try:
                await self._refresh()
            except Exception:  # the page stays as it was, and is tried again
                logger.exception("the live page could not be brought up to date")

    async def _wait_for_change(self, seen: int) -> None:
        async with self._changed:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._changed.wait_for(lambda: self._closed or self._version > seen)
            except TimeoutError:
                return

    async def _refresh(self) -> None:
        async with self._refreshing:
            page, more = await run_in_threadpool(self._read)
            found: dict[tuple[str, str], Any] = {
                ("parts", name): html for name, html in {**page.parts, **more}.items()
            }
            found["classes", ""] = list(page.classes)
            now = time.monotonic()
            if now - self._charted >= CHART_SECONDS or page.curves.keys() != self._curves.keys():
                self._charted, self._curves = now, dict(page.curves)
            found |= {("charts", name): curve for name, curve in self._curves.items()}
            await self._note(found)

    def _read(self) -> tuple[LivePage, Mapping[str, str]]:
        self._follower.advance()
        return live_page(self._follower, self._state(self._follower)), self._more(self._follower)

    async def _note(self, found: Mapping[tuple[str, str], Any]) -> None:
        """Remember what has changed, and wake up those who wait for it."""
        changed = {
            key: value
            for key, value in found.items()
            if key not in self._content or self._content[key].value != value
        }
        for key in self._content.keys() - found.keys():
            del self._content[key]
        if changed:
            self._version += 1
            self._content |= {key: _Change(self._version, value) for key, value in changed.items()}
            async with self._changed:
                self._changed.notify_all()

    def _since(self, seen: int) -> dict[str, Any]:
        """Return what has changed since a version; a chart by the version that it has now."""
        update: dict[str, Any] = {}
        for (kind, name), change in self._content.items():
            if change.version > seen:
                if kind == "classes":
                    update[kind] = change.value
                else:
                    value = change.version if kind == "charts" else change.value
                    update.setdefault(kind, {})[name] = value
        return update

    def _draw(self, name: str, size: str) -> str:
        curve = self._curves[name]
        with self._drawing:
            before = self._svg.get((name, size))
            if before is not None and before[0] == curve:
                return before[1]
            svg = draw(curve, SIZES[size])
            self._svg[name, size] = curve, svg
            return svg
