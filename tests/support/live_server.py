"""`streamcl serve` as a process of its own, on a port of its own, over digits and a tiny backbone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tiny_runs import configuration

from streamcl.config.load import dump_config
from streamcl.serving.client import Client
from streamcl.storage.lock import holder_of


class LiveServer:
    """A server that was started, its client, and the processes below it."""

    def __init__(self, folder: Path, *options: str, token: str | None = None, **config) -> None:
        self.folder = folder
        self.run = folder / "run"
        (folder / "stream.yaml").write_text(dump_config(configuration(folder, **config)))
        command = [sys.executable, "-m", "streamcl", "serve", "stream.yaml", "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        with (folder / "out.txt").open("w") as out, (folder / "errors.txt").open("w") as errors:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=errors)
        self.url = self._address().replace("0.0.0.0", "127.0.0.1")
        self.client = Client(self.url, token=token)

    def _address(self) -> str:
        end = time.monotonic() + 300
        while not (said := (self.folder / "out.txt").read_text()).startswith("serving on "):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "errors.txt").read_text())
            time.sleep(0.05)
        return said.split()[2]

    @property
    def learner(self) -> int:
        """The id of the learner's process, which holds the run."""
        holder = holder_of(self.run)
        assert holder is not None
        return holder.pid

    @property
    def predictors(self) -> list[int]:
        """The ids of the processes below the web process that are neither the learner nor Python's helper."""
        below = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        spawned = [int(each) for each in below if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text()]
        return [each for each in spawned if each != self.learner]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


@contextlib.contextmanager
def serving(folder: Path, *options: str, **config) -> Iterator[LiveServer]:
    server = LiveServer(folder, *options, **config)
    try:
        server.client.wait_until_ready(120)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
