"""The pages of the documentation, and a shell that follows one from its first command to its last."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pictures import TINY_VIT
from ports import free_port

from streamcl.errors import SourceError
from streams.download.fetch import fetched_path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = (README, *sorted(DOCS.glob("*.md")))
TINY = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
DOWNLOADED = re.compile(r'\{[^{}]*"fetch:vit-s-focus"[^{}]*\}')
"""A backbone as the pages write it, in YAML and in Python."""
PORT = "127.0.0.1:8000"


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file that it is, by its first line "# name"."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """The commands of a block of the shell, without comments."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for each in lines if (line := re.sub(r"(^|\s)#.*", "", each).strip())]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return blocks_in(page.read_text(encoding="utf-8"))


def blocks_in(text: str) -> list[Block]:
    """Return the fenced blocks of a text, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def blocks(page: Path, language: str) -> list[str]:
    """Return the texts of the blocks of one language, in order."""
    return [block.text for block in blocks_of(page) if block.language == language]


def section(page: Path, title: str) -> str:
    """Return the text below a heading, up to the next one of any level."""
    below = page.read_text(encoding="utf-8").split(f"## {title}\n")[1]
    return re.split(r"^#+ ", below, maxsplit=1, flags=re.MULTILINE)[0]


def tiny(text: str) -> str:
    """Return the text with a small backbone, without weights, in place of the one to be downloaded."""
    return DOWNLOADED.sub(json.dumps(TINY), text)


def weights_are_there() -> bool:
    """Whether the weights that the pages name have been downloaded."""
    try:
        fetched_path("vit-s-focus")
    except SourceError:
        return False
    return True


class Follower:
    """Does what a page says in a folder: writes its files, and runs its commands and its Python.

    lasting: commands that begin so run beside the following ones, until `stop`. skipped: these are not given.
    Servers get a port of their own.
    """

    def __init__(self, folder: Path, lasting: tuple[str, ...], skipped: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._lasting, self._skipped = lasting, skipped
        self._running: list[subprocess.Popen[bytes]] = []
        programs = folder / ".programs"
        programs.mkdir()
        for name, command in (("streamcl", "-m streamcl "), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
            (programs / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "STREAMCL_KEYS": str(folder / ".keys"),
            "OMP_NUM_THREADS": "1",
        }
        self.address = f"127.0.0.1:{free_port()}"

    def follow(self, block: Block) -> str:
        """Do what a block says; return what it printed. Fail where a command fails."""
        if block.language not in {"bash", "python", "yaml"}:
            return ""
        text = (block.text if weights_are_there() else tiny(block.text)).replace(PORT, self.address)
        if block.file is not None:
            (self.folder / block.file).write_text(text, encoding="utf-8")
            return ""
        if block.language == "python":
            return self._run(f"'{sys.executable}' - <<'END'\n{text}END")
        commands = Block("bash", text).commands
        given = [each for each in commands if not self._skipped or not each.startswith(self._skipped)]
        return "".join(self._start(each) or self._run(each) for each in given)

    def _start(self, command: str) -> str:
        if not self._lasting or not command.startswith(self._lasting):
            return ""
        serves = command.startswith("streamcl serve")
        if serves:
            command += f" --port {self.address.rpartition(':')[2]}"
        self._running.append(
            subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment)
        )
        if serves:
            self.wait_for(self._ready)
        return "started\n"

    def _ready(self) -> bool:
        assert self._running[-1].poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(f"http://{self.address}/health/ready", timeout=30):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; fail after three minutes."""
        end = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    def stop(self) -> list[int]:
        """Stop what still runs as Ctrl-C does; return the exit codes."""
        for process in self._running:
            process.send_signal(signal.SIGINT)
        codes = [process.wait(120) for process in self._running]
        self._running.clear()
        return codes

    def kill(self) -> None:
        """Kill what still runs, where a test has failed half-way."""
        for process in self._running:
            process.kill()
            process.wait()


def following(follower: Follower) -> Iterator[Follower]:
    """Yield a follower whose processes end with it."""
    try:
        yield follower
    finally:
        follower.kill()
