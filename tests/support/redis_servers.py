"""A private redis-server on a socket of its own, which a test may kill and start again."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conditions import wait_for


class RedisServer:
    """A server whose entries are on disk before they are confirmed. client: talks to it."""

    def __init__(self, folder: Path) -> None:
        import redis

        self._folder, self._process = folder, None
        self.url = f"unix://{folder}/redis.sock"
        self.client: Any = redis.Redis.from_url(self.url)
        self.start()

    def start(self, *options: str) -> None:
        """Start it, where it was before, and wait until it replies."""
        command = ["redis-server", "--port", "0", "--unixsocket", f"{self._folder}/redis.sock"]
        command += ["--dir", str(self._folder), "--save", "", "--appendonly", "yes"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--appendfsync", "always", *options], stdout=log)
        wait_for(lambda: self._process.poll() is not None or self._replies())
        assert self._process.poll() is None, (self._folder / "log").read_text()

    def _replies(self) -> bool:
        import redis

        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def database(self, number: int) -> Any:
        """A client of one of its databases; to be closed."""
        import redis

        return redis.Redis.from_url(self.url, db=number)

    def kill(self) -> None:
        """Kill it with -9."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self.client.close()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own, started anew."""
    pytest.importorskip("redis", reason='pip install "streamcl[redis]"')
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="redis-"))  # a socket's path must be short
    server = RedisServer(folder)
    yield server
    server.close()
    shutil.rmtree(folder)
