"""Checkpoints of a store of latents, mapped or not: bytes written, seconds, and memory of the process.

    python benchmarks/stored_latents.py --store mapped --out OUT
    python benchmarks/stored_latents.py --store memory --out OUT

The tokens are random numbers, of the shape that a ViT-S at 70 pixels gives; their content changes no figure.
With "memory" the store has no file and its tokens are one array in a checkpoint, as before there were
segments. A line of JSON each; "anonymous_mb" is memory that lies in no file (RssAnon) afterwards, and
"most_anonymous_mb" the most of it meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.memory.latent_store import LatentStore
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.files import Disk

BUDGET, SAMPLE_BYTES = 64 << 20, 26 * (384 // 2 + 4)
ROWS = BUDGET // SAMPLE_BYTES
SEGMENT_ROWS = (4 << 20) // SAMPLE_BYTES  # as `latent_factory` has it
BATCH, EVERY = 64, 2000


class CountingDisk(Disk):
    """The real disk, and how many bytes were written to it."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, handle: Any, data: bytes | memoryview) -> int:
        """Write, and count what the system took."""
        taken = super().write(handle, data)
        self.written += taken
        return taken


def anonymous_bytes() -> int:
    """Return the bytes of memory of this process that lie in no file (RssAnon)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class MostAnonymous(threading.Thread):
    """Looks every millisecond how much memory lies in no file, until `stop`; `most` is the most of it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ended = anonymous_bytes(), threading.Event()
        self.start()

    def run(self) -> None:
        """Look until the end."""
        while not self._ended.wait(0.001):
            self.most = max(self.most, anonymous_bytes())

    def stop(self) -> int:
        """End, and return the most."""
        self._ended.set()
        self.join()
        return max(self.most, anonymous_bytes())


def figures_of(action: Callable[[], Any]) -> dict[str, float]:
    """Return processor time and wall time of an action, and the most memory in no file."""
    watch, began = MostAnonymous(), (time.process_time(), time.perf_counter())
    action()
    cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
    return {
        "processor_s": round(cpu, 3),
        "wall_s": round(wall, 3),
        "most_anonymous_mb": round(watch.stop() / 1e6, 1),
    }


class Bench:
    """A store that fills up while checkpoints of it are written.

    Args:
        out: folder of the checkpoints and of files without a name; it is emptied.
        mapped: whether tokens lie in segments.
    """

    def __init__(self, out: Path, *, mapped: bool) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self._mapped, self._disk, self._steps = mapped, CountingDisk(), 0
        self._checkpoints = Checkpoints(out / "checkpoints", fingerprint={}, disk=self._disk)
        self.store = self.new_store(out)
        self._out, self._random = out, np.random.default_rng(0)

    def new_store(self, out: Path) -> LatentStore:
        """Return an empty store."""
        return LatentStore("int4", b"key", segment_rows=SEGMENT_ROWS, folder=out if self._mapped else None)

    def state(self) -> dict[str, Any]:
        """Return the store's state, its tokens as one array where they are not mapped."""
        state = self.store.state_dict()
        if self._mapped:
            return {"store": state}
        segments = state.pop("segments")
        joined = {name: np.concatenate([part[name] for part in segments]) for name in ("codes", "scales")}
        return {"store": {**state, **joined}}

    def add(self, first: int) -> None:
        """Store a batch."""
        tokens = self._random.standard_normal((BATCH, 26, 384), dtype=np.float32)
        offsets = list(range(first, first + BATCH))
        places = [self.store.place(f"s{offset}") for offset in offsets]
        labels = [f"class {offset % 10}" for offset in offsets]
        self.store.add(tokens, labels, offsets, places, trainings=0, weight=1)

    def save(self, what: str) -> None:
        """Write a checkpoint and print its figures."""
        self._steps += 1
        before = self._disk.written
        figures = figures_of(lambda: self._checkpoints.save(self._steps, self._steps, self.state()))
        self.tell(what, written_mb=round((self._disk.written - before) / 1e6, 2), **figures)

    def purge(self) -> None:
        """Remove all checkpoints but the newest, as an erasure does."""
        self._checkpoints.purge_before(self._checkpoints.paths()[-1])

    def load(self) -> None:
        """Become what the newest checkpoint holds."""
        self.store = self.new_store(self._out)
        self.tell("load", **figures_of(self._load))

    def tell(self, what: str, **figures: float) -> None:
        """Print a line of figures."""
        stored, anonymous = round(self.store.nbytes / 1e6, 1), round(anonymous_bytes() / 1e6, 1)
        line = {"what": what, "stored_mb": stored, **figures, "anonymous_mb": anonymous}
        print(json.dumps(line), flush=True)

    def _load(self) -> None:
        loaded = self._checkpoints.latest()
        assert loaded is not None
        self.store.load_state_dict(loaded.state["store"])


def main() -> None:
    """Fill the store, save as it grows and when it is full, remove a sample, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", choices=("mapped", "memory"), default="mapped")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(options.out, mapped=options.store == "mapped")
    bench.tell("start")
    for first in range(0, ROWS - BATCH, BATCH):
        bench.add(first)
        if first // EVERY < (first + BATCH) // EVERY:
            bench.save("growing")
    for _ in range(5):
        bench.save("full")
    bench.store.remove([ROWS // 2])
    bench.save("erasure")
    bench.purge()
    bench.save("first after an erasure")
    bench.save("second after an erasure")
    bench.load()


if __name__ == "__main__":
    main()
