"""Plays digits into a live source while a run learns them, kills the run on the way, and counts the records.

    python configs/live_demo.py [--records 300] [--rate 50] [--folder] [--set key=value ...]

It starts a private redis-server, or takes a folder where there is none (or with --folder), and runs
configs/live_redis.yaml or configs/live_folder.yaml. The exit code is 0 where each record was learned once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from streamcl.events import Batch, Sample
from streams.build import named_source

CONFIGS = Path(__file__).parent
DEADLINE = 600.0  # seconds for the whole, on a machine that is slow


class Inlet(Protocol):
    """Where records are put for a run to learn them."""

    config: str
    environment: dict[str, str]

    def put(self, number: int, sample: Sample) -> str:
        """Put a record; return its id in the stream."""


class RedisInlet:
    """A stream of a private redis-server."""

    config = "live_redis.yaml"

    def __init__(self, folder: Path) -> None:
        import redis

        url = f"unix://{folder}/redis.sock"
        self.client: Any = redis.Redis.from_url(url)
        self.environment = {"REDIS_URL": url, "REDIS_KEY": "digits"}

    def put(self, number: int, sample: Sample) -> str:  # noqa: ARG002 - Redis numbers entries itself
        """Add an entry."""
        entry = self.client.xadd("digits", {"image": png(sample), "label": str(sample.label)})
        return f"digits/{entry.decode()}"


class FolderInlet:
    """A folder, in which a file appears whole."""

    config = "live_folder.yaml"

    def __init__(self, folder: Path) -> None:
        self.root = folder / "digits"
        self.root.mkdir()
        self.environment = {"STREAMCL_FOLDER": str(self.root)}

    def put(self, number: int, sample: Sample) -> str:
        """Write a file."""
        name = f"{sample.label}/{number:05}.png"
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_bytes(png(sample))
        partial.rename(path)
        return name


@contextmanager
def private_redis(folder: Path) -> Iterator[RedisInlet]:
    """Start a redis-server on a socket of its own, and end it afterwards."""
    command = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder)]
    options = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as server:
        try:
            inlet = RedisInlet(folder)
            while not _is_up(inlet.client):
                time.sleep(0.05)
            yield inlet
        finally:
            server.terminate()


def _is_up(client: Any) -> bool:
    import redis

    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def png(sample: Sample) -> bytes:
    """Return a sample's image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "PNG")
    return buffer.getvalue()


def digits(count: int) -> list[Sample]:
    """Return digits of two domains, new classes after the half."""
    source = named_source("demo_digits", {"length": -(-count // 4)})
    samples = (sample for event in source if isinstance(event, Batch) for sample in event.samples)
    return list(islice(samples, count))


class Player(threading.Thread):
    """Puts samples into an inlet at a rate, and keeps their ids."""

    def __init__(self, inlet: Inlet, samples: list[Sample], rate: float) -> None:
        super().__init__(daemon=True)
        self.inlet, self.samples, self.rate = inlet, samples, rate
        self.sent: list[str] = []

    def run(self) -> None:
        """Put one sample after the other."""
        began = time.monotonic()
        for number, sample in enumerate(self.samples):
            time.sleep(max(0.0, began + number / self.rate - time.monotonic()))
            self.sent.append(self.inlet.put(number, sample))


def learned(run_dir: Path) -> list[str]:
    """Return the ids of the records that the run has predicted and learned, as far as they are on disk."""
    log = run_dir / "predictions.jsonl"
    if not log.exists():
        return []
    lines = log.read_bytes().split(b"\n")[:-1]  # the last may be half written
    return [json.loads(line)["id"] for line in lines]


def start(inlet: Inlet, run_dir: Path, records: int, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Start, or continue, the run."""
    sets = [f"run_dir={run_dir}", f"max_samples={records}", *overrides]
    command = [sys.executable, "-m", "streamcl", "run", str(CONFIGS / inlet.config), "--quiet"]
    arguments = [part for each in sets for part in ("--set", each)]
    return subprocess.Popen([*command, *arguments], env={**os.environ, **inlet.environment})


def demonstrate(inlet: Inlet, run_dir: Path, options: argparse.Namespace) -> bool:
    """Return whether each record that was sent was learned once, although the run was killed on the way."""
    samples = digits(options.records)
    until = time.monotonic() + DEADLINE
    process = start(inlet, run_dir, len(samples), options.overrides)
    player = Player(inlet, samples, options.rate)
    player.start()
    while len(learned(run_dir)) < len(samples) // 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"killed with -9: {len(player.sent)} sent, {len(learned(run_dir))} learned so far", flush=True)
    process = start(inlet, run_dir, len(samples), options.overrides)
    print("started again", flush=True)
    try:
        code = process.wait(max(1.0, until - time.monotonic()))
    finally:
        process.kill()
    player.join()
    return report(player.sent, learned(run_dir), run_dir) and code == 0


def report(sent: list[str], found: list[str], run_dir: Path) -> bool:
    """Print how many records were lost and doubled; return whether none was."""
    times = Counter(found)
    lost, doubled = set(sent) - set(found), [name for name, count in times.items() if count > 1]
    print(f"sent {len(sent)}, learned {len(found)}: {len(lost)} lost, {len(doubled)} doubled")
    summary = json.loads((run_dir / "summary.json").read_text())
    print(f"accuracy of the predictions: {summary['prequential']['accuracy']:.1%}")
    print(f"report: {run_dir / 'report.html'}")
    return not lost and not doubled and len(found) == len(sent)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--rate", type=float, default=50.0, help="records a second")
    parser.add_argument("--folder", action="store_true", help="a folder, also where there is a Redis")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/live_demo"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    shutil.rmtree(options.run_dir, ignore_errors=True)  # of the demonstration before
    has_redis = shutil.which("redis-server") is not None and find_spec("redis") is not None
    with tempfile.TemporaryDirectory(prefix="streamcl-live-") as name:
        if has_redis and not options.folder:
            print(f"{options.records} digits at {options.rate:g} a second, through a private Redis")
            with private_redis(Path(name)) as inlet:
                done = demonstrate(inlet, options.run_dir, options)
        else:
            print(f"{options.records} digits at {options.rate:g} a second, through a folder")
            done = demonstrate(FolderInlet(Path(name)), options.run_dir, options)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
