"""What docs/serving.md shows works as it stands: every command and the Python, against a server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import wait_for
from live_server import serving
from streams_data import write_picture

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for number in range(12):
        write_picture(folder / "inbox" / f"{('gear', 'bolt')[number % 2]}_{number:04d}.png", number)
    for name in ("gear_0001", "bolt_0002"):
        write_picture(folder / "inbox" / f"{name}.png", 1)
    with serving(folder, "--publish-every", "0.1", **PUSHED) as server:
        inbox = sorted((folder / "inbox").iterdir())
        server.client.add_records([(path, {"label": path.name.split("_")[0]}) for path in inbox])
        wait_for(lambda: server.client.status().newest.offset == len(inbox))
        yield server


PUSHED = {
    "source": {"name": "push"},
    "max_samples": None,
    "batch": {"size": 4, "max_wait": "50ms"},
    "labels": {"wait": "1h", "max_waiting": 100},
    "forgetting": {"keep_statistics": "per_class"},
}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.rsplit("/", 1)[-1][:30])
def test_each_command_is_answered(command, served):
    command = command.replace("http://127.0.0.1:8000", served.url).replace("my_stream", "tiny")
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS ")],
        cwd=served.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "metrics" not in command:
        assert json.loads(done.stdout)


@pytest.mark.long
def test_the_python_works(served):
    (script,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", script.replace("http://127.0.0.1:8000", served.url)],
        cwd=served.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["done", "exact"]


def test_the_page_has_what_these_tests_run():
    assert len(COMMANDS) == 14
    assert len(blocks("python")) == 1
