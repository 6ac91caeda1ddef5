"""Measures live sources beside a bare read: records per second, time to a prediction, highest rate.

    python benchmarks/live.py [--sources folder redis] [--records 2048] [--rounds 5] [--seconds 20]

Pictures are JPEG files of some 20 kB (224 x 224 px). The loop is the real one, with its sink and a learner
that computes nothing. In each round, one after the other: a bare read of the broker (bytes alone), a bare
read that also decodes every picture, and the loop; reported are the medians of their rates, and the median,
lowest and highest of the rounds' ratios. A second process then publishes at half the loop's rate: p50 and
p99 of the time from publishing a record to its prediction, with `predict_at: arrival`. Last the highest
share of that rate at which records do not wait longer and longer. Redis is started on a private socket.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import machine
from PIL import Image

from streamcl.config.load import config_from_dict
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.factory.source import build_source
from streamcl.nn.device import resolve_compute
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy
from streamcl.shift.detector import build_detector
from streamcl.sinks.jsonl import JsonlSink

SIDE, QUALITY = 224, 97  # a JPEG file of some 20 kB
SHARES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1)  # of the loop's rate, tried upwards
STREAM = "pictures"
FIRST = 64  # records that are not measured: a folder is first looked at twice


def jpeg(number: int) -> bytes:
    """Return a picture with smooth shapes and some noise, as a camera's."""
    rng = np.random.default_rng(number % 64)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))
    noise = rng.integers(0, 12, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.asarray(coarse) // 2 + noise).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


class Null:
    """A learner that computes nothing."""

    classes = ("a",)

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        return (Prediction("a", 1.0),) * len(samples)

    def learn(self, batch: Batch) -> StepResult:
        losses = (1.0,) * len(batch.labelled)
        return StepResult(self.predict(batch.samples), losses, learned=batch.labelled_offsets)

    def consolidate(self) -> Mapping[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class FolderFeed:
    """Pictures in a folder, each renamed once it is complete."""

    def __init__(self, work: Path) -> None:
        self.root = work / STREAM
        (self.root / "a").mkdir(parents=True, exist_ok=True)

    def source(self) -> dict[str, Any]:
        return {"name": "folder", "args": {"root": str(self.root), "interval": 0.05}}

    def publish(self, name: str, data: bytes) -> None:
        part = self.root / "a" / f".{name}"
        part.write_bytes(data)
        part.rename(self.root / "a" / f"{name}.jpg")

    def read(self) -> Iterator[bytes]:
        for path in sorted((self.root / "a").iterdir()):
            yield path.read_bytes()

    def clear(self) -> None:
        for path in (self.root / "a").iterdir():
            path.unlink()

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.root / "a" / f"{name}.jpg").unlink(missing_ok=True)

    def disturb(self) -> None:
        """Nothing can be killed in a folder."""

    def close(self) -> None:
        pass


class RedisFeed:
    """A stream of a private redis-server that syncs every write."""

    def __init__(self, work: Path) -> None:
        import redis

        self.socket = work / "redis.sock"
        self._command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(work)]
        self._command += ["--appendonly", "yes", "--appendfsync", "always"]
        self._server: subprocess.Popen[bytes] | None = None
        if not self.socket.exists():  # the process that publishes finds it there
            self._start()
        self.client: Any = redis.Redis(unix_socket_path=str(self.socket))

    def _start(self) -> None:
        self._server = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while not self.socket.exists():
            time.sleep(0.01)

    def source(self) -> dict[str, Any]:
        return {"name": "redis", "args": {"keys": STREAM, "url": f"unix://{self.socket}"}}

    def publish(self, name: str, data: bytes) -> None:
        self.client.xadd(STREAM, {"image": data, "label": "a", "id": name})

    def read(self) -> Iterator[bytes]:
        last = b"0"
        while found := self.client.xread({STREAM: last}, count=64):
            entries: Any = found[0][1]
            for _, fields in entries:
                yield fields[b"image"]
            last = entries[-1][0]

    def clear(self) -> None:
        self.client.delete(STREAM)

    def remove(self, names: Sequence[str]) -> None:
        """Trim the stream by as many entries as these are: the oldest."""
        self.client.xtrim(STREAM, maxlen=self.client.xlen(STREAM) - len(names), approximate=False)

    def disturb(self) -> None:
        """Kill the server, and start it again a second later."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self.socket.unlink(missing_ok=True)
            time.sleep(1.0)
            self._start()

    def close(self) -> None:
        self.client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


FEEDS: dict[str, Callable[[Path], Any]] = {"folder": FolderFeed, "redis": RedisFeed}


@dataclass
class Loop:
    """The real loop over a feed, in a folder of its own."""

    feed: Any
    work: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, stack: ExitStack) -> Iterator[tuple[float, str]]:
        """Yield the time and the id of each prediction."""
        folder = Path(stack.enter_context(TemporaryDirectory(dir=self.work)))
        config = config_from_dict({"source": self.feed.source(), "shift": "none", **self.options})
        source = stack.enter_context(closing(build_source(config, folder=folder)))
        sink = stack.enter_context(closing(JsonlSink(folder)))
        parts = LoopParts(
            detector=build_detector("none"),
            scores=Prequential(),
            history=HoldoutHistory(),
            evaluator=HoldoutEvaluator(()),
            meter=Throughput(),
            sink=sink,
        )
        processor = StreamProcessor(source, Null(), parts, LoopPolicy(flush_seconds=1.0))
        self.source = source
        for made in processor.run():
            yield time.time(), made.id


def rate(records: int, of: Iterator[Any]) -> float:
    """Return the records per second of an iterator, from the end of its first batch to record `records`."""
    began = 0.0
    for number, _ in enumerate(of, 1):
        if number == FIRST:
            began = time.perf_counter()
        if number == records:
            break
    return (records - FIRST) / (time.perf_counter() - began)


def decoded(data: Iterator[bytes]) -> Iterator[Any]:
    for each in data:
        yield np.asarray(Image.open(io.BytesIO(each)).convert("RGB"))


def throughput(feed: Any, work: Path, records: int, rounds: int) -> dict[str, Any]:
    """Measure the three rates in turns over the same records, of whole batches: the last does not wait."""
    records -= records % FIRST
    for number in range(records):
        feed.publish(f"{number:06}", jpeg(number))
    rates: dict[str, list[float]] = {"bare": [], "bare_decoded": [], "loop": []}
    for _ in range(rounds):
        rates["bare"].append(rate(records, feed.read()))
        rates["bare_decoded"].append(rate(records, decoded(feed.read())))
        with ExitStack() as stack:
            rates["loop"].append(rate(records, Loop(feed, work).run(stack)))
    feed.clear()
    ratios = {
        name: sorted(ours / bare for ours, bare in zip(rates["loop"], rates[name], strict=True))
        for name in ("bare", "bare_decoded")
    }
    return {
        "records_per_s": {name: round(median(each)) for name, each in rates.items()},
        "loop_to": {
            name: [round(value, 2) for value in (median(each), each[0], each[-1])]
            for name, each in ratios.items()
        },
    }


def published(name: str, work: Path, per_second: float, seconds: float) -> subprocess.Popen[bytes]:
    """Start a second process that publishes at a rate; an id is the time at which its record was due."""
    command = [sys.executable, __file__, "--publish", name, str(work), str(per_second), str(seconds)]
    return subprocess.Popen(command)


def publish(name: str, work: Path, per_second: float, seconds: float) -> None:
    """Publish at a rate for so many seconds."""
    feed, began = FEEDS[name](work), time.time()
    pictures = [jpeg(number) for number in range(64)]
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        time.sleep(max(0.0, due - time.time()))
        feed.publish(f"{due:.6f}", pictures[number % 64])


def follow(name: str, feed: Any, work: Path, per_second: float, seconds: float) -> list[tuple[float, float]]:
    """Return, of each record published at a rate, when it was due and when it was predicted."""
    count, found = int(per_second * seconds), list[tuple[float, float]]()
    options = {"batch": {"size": 64, "max_wait": 0.2, "predict_at": "arrival"}}
    with ExitStack() as stack:
        writer = published(name, work, per_second, seconds)
        for at, made in Loop(feed, work, options).run(stack):
            found.append((float(Path(made).stem if "/" in made else made), at))
            if len(found) == count:
                break
        writer.wait()
    feed.clear()
    return found


def latency(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return percentiles of the seconds from publishing to prediction, without the first second."""
    waits = [at - due for due, at in found if due > found[0][0] + 1.0]
    cuts = quantiles(waits, n=100)
    return {"n": len(waits), "p50_ms": round(1000 * cuts[49], 1), "p99_ms": round(1000 * cuts[98], 1)}


def is_flat(found: Sequence[tuple[float, float]]) -> bool:
    """Return whether records waited no longer at the end than in the middle, but for a tenth of a second."""
    third = len(found) // 3
    middle = median(at - due for due, at in found[third : 2 * third])
    return median(at - due for due, at in found[2 * third :]) <= middle + 0.1


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one source."""
    with TemporaryDirectory() as temporary, closing(FEEDS[name](Path(temporary))) as feed:
        work = Path(temporary)
        result = throughput(feed, work, args.records, args.rounds)
        full = result["records_per_s"]["loop"]
        result["latency_at_half"] = latency(follow(name, feed, work, full / 2, args.seconds))
        flat = [0.0]
        for share in SHARES:
            if not is_flat(follow(name, feed, work, share * full, args.seconds / 2)):
                break
            flat.append(share)
        result["flat_up_to"] = {"share": flat[-1], "records_per_s": round(flat[-1] * full)}
        return result


def main() -> None:
    """Measure each source, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sources", nargs="+", choices=sorted(FEEDS), default=["folder"])
    parser.add_argument("--records", type=int, default=2048, help="rounded to whole batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--publish", nargs=4, metavar=("SOURCE", "WORK", "RATE", "SECONDS"))
    args = parser.parse_args()
    if args.publish:
        name, work, per_second, seconds = args.publish
        publish(name, Path(work), float(per_second), float(seconds))
        return
    result = {
        "machine": machine(resolve_compute("cpu", "32-true")),
        "bytes_per_record": round(median(len(jpeg(number)) for number in range(64))),
        "sources": {name: measure(name, args) for name in args.sources},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
