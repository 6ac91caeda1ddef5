"""The first steps of docs/serving.md, as a new user takes them: its configuration, its commands in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conditions import wait_for
from pictures import encoded_picture

ROOT = Path(__file__).parents[2]
WALK = (ROOT / "docs" / "serving.md").read_text("utf-8").partition("## From nothing to a receipt")[2]
WALK = WALK.partition("\n## ")[0]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
TINY = """
backbone:
  name: vit_tiny_patch16_224
  weights: none
  image_size: 32
  args: {patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2}
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", WALK, re.MULTILINE | re.DOTALL)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Terminal:
    """Runs commands in a folder in which `streamcl` is this version, and the server has another port."""

    def __init__(self, folder):
        (folder / "bin").mkdir()
        program = folder / "bin" / "streamcl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m streamcl "$@"\n')
        program.chmod(0o755)
        self.folder, self.port = folder, free_port()
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start_server(self):
        command = ["streamcl", "serve", "my_stream.yaml", "--port", str(self.port)]
        with (self.folder / "out.txt").open("w") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT
            )

    def run(self, line):
        line = line.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_a_new_user_comes_from_nothing_to_a_receipt(tmp_path):
    (tmp_path / "inbox").mkdir()
    for name in ("gear", "bolt", "wheel"):
        for number in range(1, 41):
            image = encoded_picture({"gear": "ant", "bolt": "bee", "wheel": "owl"}[name], number)
            (tmp_path / "inbox" / f"{name}_{number:04d}.png").write_bytes(image)
    (config,) = blocks("yaml")
    (tmp_path / "my_stream.yaml").write_text(config + TINY)
    send, accuracy, predict, correct, forget, receipts, verify = (
        line for block in blocks("sh") for line in block.splitlines()
    )
    terminal = Terminal(tmp_path)
    server = terminal.start_server()
    try:
        wait_for(lambda: "serving on" in (tmp_path / "out.txt").read_text())
        terminal.run(send)
        metrics = tmp_path / "runs" / "my_stream" / "metrics.jsonl"
        wait_for(lambda: metrics.read_text().count('"offset": 120'))
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        seen = [each["accuracy"] for each in steps if each.get("accuracy") is not None]
        assert seen[-1] > seen[0]
        assert '"offset": 120' in terminal.run(accuracy)
        wait_for(lambda: json.loads(terminal.run(predict))["predictions"][0]["class"] == "gear")
        assert json.loads(terminal.run(correct)) == {"accepted": 1}
        events = tmp_path / "runs" / "my_stream" / "events.jsonl"
        wait_for(lambda: '"corrected"' in events.read_text())
        assert json.loads(terminal.run(forget))["status"] == "received"
        wait_for(lambda: json.loads(terminal.run(receipts))["requests"][0]["status"] == "done")
        assert "done" in terminal.run(verify)
        assert json.loads(terminal.run(predict))["predictions"][0]["class"] != "bolt"
    finally:
        server.terminate()
        assert server.wait(60) == 143
