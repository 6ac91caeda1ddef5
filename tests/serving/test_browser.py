"""The live page in a real browser: it follows a run; a label is corrected, and a class forgotten."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import wait_for
from followed_runs import add, step
from live_server import serving
from pictures import picture

from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.serving.access.tokens import TokenFile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLAYWRIGHT, reason="playwright is not installed (pip install -e .[browser])"),
    pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="no chromium (apt-get install chromium)"),
]
PUSHED = {
    "source": {"name": "push"},
    "max_samples": None,
    "batch": {"size": 4, "max_wait": "50ms"},
    "labels": {},
    "forgetting": {"keep_statistics": "per_class"},
}
PATIENCE = 60_000  # ms


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """Opens pages, which must neither have errors nor break their policy."""
    faults, contexts = [], []

    def page_at(url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        page.goto(url)
        return page

    yield page_at
    for context in contexts:
        context.close()
    assert faults == []


FORGET = """async () => {
  const token = sessionStorage.getItem("streamcl-token");
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
  return (await fetch("/v1/forget", { method: "POST", headers, body: '{"label": "otter"}' })).status;
}"""
"""The answer to a request to forget with the token that the page has."""


def push(server, label, numbers):
    fields = [{"id": f"{label}-{number}", "label": label} for number in numbers]
    server.client.add_records(
        [(picture(label, number), each) for number, each in zip(numbers, fields, strict=True)]
    )


def figure(page, name):
    return page.locator(f"#figures div:has(dt:text-is('{name}')) dd").first


def test_a_label_is_corrected_by_a_click_and_a_class_is_forgotten(tmp_path, opened):
    with serving(tmp_path, **PUSHED) as server:
        push(server, "heron", range(4))
        push(server, "otter", range(4))
        page = opened(server.url)
        page.locator("#connection[data-state=connected]").wait_for()
        page.locator(".health", has_text="learning: running").wait_for()
        figure(page, "Records passed").get_by_text("8", exact=True).wait_for()
        page.locator("[data-chart=accuracy] svg").wait_for()

        push(server, "heron", range(10, 14))  # the page follows by itself
        figure(page, "Records passed").get_by_text("12", exact=True).wait_for()
        image = page.locator("#images li", has=page.locator("[data-record='heron-13']"))
        image.locator("img[src^=blob]").wait_for()
        image.get_by_role("button", name="The label of this image is otter").click()
        page.locator("#message", has_text="Label sent: otter.").wait_for()
        wait_for(lambda: "corrected" in (server.run / "events.jsonl").read_text())
        page.locator("#classes .bar", has_text="otter").wait_for()

        page.get_by_role("button", name="Ask to forget a class").click()
        page.locator("#forget-class").select_option("otter")
        page.get_by_role("button", name="Forget the class").click()  # not before it is confirmed
        assert page.locator("#dialog-forget").is_visible()
        page.get_by_label("Erase it for good").check()
        page.get_by_role("button", name="Forget the class").click()
        page.locator("#requests .verdict", has_text="done").wait_for()
        page.locator("#classes .bar", has_text="otter").wait_for(state="detached")
        assert "otter" not in page.locator("#arrivals").inner_text()
        assert page.locator("#images li").count() == 0
        page.locator("#requests a", has_text="receipt").click()
        page.get_by_role("heading", name="Receipt for a request to forget").wait_for()


def test_the_page_asks_for_a_token_and_offers_what_its_role_may_do(tmp_path, opened):
    file = TokenFile(tmp_path / "tokens.json")
    teacher, officer = file.add("ann", "teacher"), file.add("dpo", "officer")
    with serving(tmp_path, "--require-tokens", "--tokens", str(file.path), token=teacher, **PUSHED) as server:
        push(server, "heron", range(4))
        page = opened(server.url)
        dialog = page.locator("#dialog-token")
        dialog.wait_for()
        dialog.get_by_label("Token").fill("streamcl_wrong")
        dialog.get_by_role("button", name="Use this token").click()
        page.locator("#token-reason", has_text="not accepted").wait_for()
        assert page.locator("#figures dd").count() == 0  # nothing is shown without a token
        dialog.get_by_label("Token").fill(teacher)
        page.keyboard.press("Enter")
        figure(page, "Records passed").get_by_text("4", exact=True).wait_for()
        dialog.wait_for(state="hidden")
        push(server, "otter", range(4))
        image = page.locator("#images li", has=page.locator("[data-record='otter-3']"))
        image.get_by_role("button", name="The label of this image is heron").click()
        page.locator("#message", has_text="Label sent: heron.").wait_for()
        assert page.get_by_role("button", name="Ask to forget a class").count() == 0
        assert page.evaluate(FORGET) == 403

        page = opened(server.url)  # another window has a token of its own
        page.get_by_role("textbox", name="Token").fill(officer)
        page.get_by_role("button", name="Use this token").click()
        page.get_by_role("button", name="Ask to forget a class").click()
        page.locator("#forget-class").select_option("otter")
        page.get_by_label("Erase it for good").check()
        page.get_by_role("button", name="Forget the class").click()
        page.locator("#requests .verdict", has_text="done").wait_for()
        assert page.locator("#images button").count() == 0  # labels are the teacher's
        with page.expect_download() as saved:
            page.locator("#requests a", has_text="receipt").click()
        assert saved.value.suggested_filename.startswith("receipt-")
        file.revoke("dpo")
        page.reload()
        page.locator("#token-reason", has_text="not accepted").wait_for()


@pytest.fixture
def run(tmp_path):
    names = [f"class with a long name, number {number}" for number in range(30)]
    add(tmp_path, "events", {"kind": "start", "offset": 0, "shifts": [10, 20], "length": 100})
    add(tmp_path, "events", {"kind": "new_class", "offset": 1, "classes": names})
    add(tmp_path, "events", {"kind": "shift", "offset": 12, "reason": "mean loss of 5 batches rose"})
    add(tmp_path, "metrics", *(step(number) for number in range(1, 31)))
    for offset, name in enumerate(names):
        add(tmp_path, "predictions", {"offset": offset, "label": name, "predicted": name, "confidence": 0.5})
    with Ledger(tmp_path / LEDGER) as ledger:
        ledger.submit({"id": "ticket-17", "label": names[3]})
    return tmp_path


class Watching:
    """`streamcl watch` as a process, on a port that it keeps when it is started again."""

    def __init__(self, run):
        self.run, self.port = run, 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "streamcl", "watch", str(self.run), "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self):
        self.process.terminate()
        self.process.wait(300)
        self.process.stdout.close()


@pytest.fixture
def watching(run):
    process = Watching(run)
    yield process
    process.stop()


def test_a_run_is_watched_and_the_page_comes_back_with_the_server(watching, opened):
    page = opened(watching.url)
    figure(page, "Records passed").get_by_text("30", exact=True).wait_for()
    page.locator(".health", has_text="learning: stopped").wait_for()
    add(watching.run, "metrics", step(31))
    figure(page, "Records passed").get_by_text("31", exact=True).wait_for()
    watching.stop()
    page.locator("#connection[data-state=lost]").wait_for()
    add(watching.run, "metrics", step(32))
    watching.start()
    page.locator("#connection[data-state=connected]").wait_for()
    figure(page, "Records passed").get_by_text("32", exact=True).wait_for()
    assert page.get_by_role("button").count() == 0  # it is to be read only


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_can_be_read_aloud(watching, opened, width, scheme):
    page = opened(watching.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator("[data-chart=loss] svg").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in (
        "Accuracy over the stream",
        "Loss over the stream",
        "Classes",
        "Shifts",
        "Requests to forget",
    ):
        assert page.get_by_role("region", name=name, exact=True).first.is_visible()
    assert page.get_by_role("img").count() == 3
    table = page.get_by_text("Accuracy as a table")
    table.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("columnheader", name="images passed").first.is_visible()
    add(watching.run, "metrics", step(31))  # an update leaves open what is open, and the focus where it is
    figure(page, "Records passed").get_by_text("31", exact=True).wait_for()
    assert page.locator("#table-percent").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.textContent") == "Accuracy as a table"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
