"""The live page without a browser: its files, its policy, its updates, and what it serves of a run."""

import asyncio
import json
import re
import subprocess
import sys

import pytest
from asgi_calls import application, call
from followed_runs import add, step

from streamcl.serving.access.access_control import AccessOptions
from streamcl.serving.access.tokens import TokenFile
from streamcl.serving.page import feed as feeds
from streamcl.serving.page.feed import PageFeed
from streamcl.serving.page.monitor import build_monitor, run_state
from streamcl.serving.page.routes import receipt_page


@pytest.fixture
def run(tmp_path):
    add(tmp_path, "events", {"kind": "start", "offset": 0, "shifts": [10], "length": 40})
    add(tmp_path, "metrics", *(step(number) for number in range(1, 31)))
    return tmp_path


def monitor(run):
    return build_monitor(run, PageFeed(run, run_state))


def test_the_page_loads_nothing_from_outside_and_allows_no_inline_script_or_style(run):
    app = monitor(run)
    status, headers, body = call(app, "GET /")
    text = body.decode()
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|<style|style=|<script>|\son\w+=", text)
    wanted = re.findall(r'(?:src|href)="(/[^"]+)"', text)
    assert len(wanted) == 4
    for path in wanted:
        status, headers, body = call(app, f"GET {path}")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|\beval\(", body.decode())


@pytest.mark.parametrize(
    "path", ["page/none.js", "page/..%2Fmonitor.py", "page/feed.py", "page/charts/none.svg"]
)
def test_there_are_no_other_files(run, path):
    assert call(monitor(run), f"GET /{path}")[0] == 404


@pytest.mark.parametrize(
    ("role", "seen"),
    [
        ("reader", set()),
        ("teacher", {"images", "attention", "labels"}),
        ("officer", {"images", "attention", "actions", "requests"}),
    ],
)
def test_whoever_looks_is_sent_what_the_role_may_see(tmp_path, role, seen):
    file = TokenFile(tmp_path / "tokens.json")
    headers = {"authorization": f"Bearer {file.add('somebody', role)}"}
    app = application(tmp_path, access=AccessOptions(tokens=file.path, required=True))
    status, _, body = call(app, "GET /v1/events", headers=headers, leave_after=2)
    first, second = (json.loads(each.partition("data: ")[2]) for each in body.decode().split("\n\n")[:2])
    assert status == 200
    assert set(first["allowed"]) == seen
    assert {"images", "attention", "actions", "requests"} & second["parts"].keys() == seen - {"labels"}
    assert call(app, "GET /page/images/1", headers=headers)[0] == (404 if "images" in seen else 403)
    assert call(app, "GET /")[0] == 200  # the page itself holds nothing, and asks for a token


def test_other_sites_may_not_look(run):
    app = monitor(run)
    for path in ("/", "/v1/events", "/page/charts/loss.svg"):
        assert call(app, f"GET {path}", headers={"origin": "http://evil.example"})[0] == 403
        assert call(app, f"GET {path}", headers={"host": "evil.example"})[0] == 403


async def updates_of(feed, changes):
    """Return the first update, and the next one after each change."""
    stream, found = feed.updates(), []
    try:
        found.append(await anext(stream))
        for change in changes:
            change()
            while (update := await anext(stream)) is None:
                pass
            found.append(update)
    finally:
        await stream.aclose()
    return found


def test_at_first_everything_is_sent_and_then_what_changes(run, monkeypatch):
    monkeypatch.setattr(feeds, "REFRESH_SECONDS", 0.01)
    first, second = asyncio.run(updates_of(PageFeed(run, run_state), [lambda: add(run, "metrics", step(31))]))
    assert set(first["parts"]) >= {"title", "health", "figures", "accuracy", "shifts", "requests"}
    assert set(first["charts"]) == {"accuracy", "loss", "speed"}
    assert ">30<" in first["parts"]["figures"]
    assert ">31<" in second["parts"]["figures"]
    assert not set(second["parts"]) & {"title", "shifts", "requests", "checkpoints"}


def test_a_chart_is_drawn_for_either_size_and_once(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(feeds, "draw", lambda curve, size: drawn.append(size) or "<svg/>")

    async def charts():
        feed = PageFeed(run, run_state)
        await updates_of(feed, [])
        for size in ("wide", "narrow", "wide", "narrow"):
            assert await feed.chart("loss", size) == "<svg/>"
        assert await feed.chart("loss", "huge") is None

    asyncio.run(charts())
    assert len(drawn) == 2


def test_nothing_is_read_while_nobody_looks_and_what_was_kept_is_read_anew(run, monkeypatch):
    monkeypatch.setattr(feeds, "REFRESH_SECONDS", 0.01)

    async def later():
        feed = PageFeed(run, run_state)
        await updates_of(feed, [])
        while feed.is_following:
            await asyncio.sleep(0.01)
        add(run, "metrics", step(31))
        (first,) = await updates_of(feed, [])
        assert ">31<" in first["parts"]["figures"]

    asyncio.run(later())


def test_updates_end_when_the_server_does(run):
    async def ended():
        feed = PageFeed(run, run_state)
        stream = feed.updates()
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream, "ended"))
        await asyncio.sleep(0)
        await feed.close()
        assert await asyncio.wait_for(waiting, 60) == "ended"

    asyncio.run(ended())


def test_so_many_may_look_and_no_more(run, monkeypatch):
    monkeypatch.setattr(feeds, "MAX_VIEWERS", 0)
    status, headers, _ = call(monitor(run), "GET /v1/events")
    assert (status, headers["retry-after"]) == (503, "30")


def test_a_receipt_is_a_page_for_a_browser_and_json_for_programs(run):
    page = receipt_page("<html><style>\nmain {}\n</style><p>receipt</p></html>")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "'sha256-" in policy
    app = monitor(run)
    assert call(app, "GET /v1/receipts/none")[0] == 404
    assert call(app, "GET /v1/receipts/..%2F..%2Fledger")[0] == 404


def test_looking_changes_nothing_and_needs_no_torch(run):
    code = (
        "import sys, asyncio, pathlib\n"
        "from streamcl.serving.page.feed import PageFeed\n"
        "from streamcl.serving.page.monitor import build_monitor, run_state\n"
        "feed = PageFeed(pathlib.Path(sys.argv[1]), run_state)\n"
        "app = build_monitor(pathlib.Path(sys.argv[1]), feed)\n"
        "async def look():\n"
        "    await anext(feed.updates())\n"
        "    assert '<svg' in await feed.chart('loss', 'narrow')\n"
        "asyncio.run(look())\n"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)\n"
    )
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert subprocess.run([sys.executable, "-c", code, str(run)], check=False).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
