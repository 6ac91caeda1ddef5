"""Measures `streamcl serve` over the loopback address: time to an answer, idle and while it learns, and rate.

    python benchmarks/serve.py [--clients 1 8 32] [--requests 1000] [--rounds 5] [--seconds 10]

The model is ViT-S (98 px, weights by pip) with the learner ridge_lora over the demo's digits; one predictor
with one thread, and a learner with one. Clients keep their connections, send one PNG a request and wait for
the answer. Reported are p50 and p99 in milliseconds for each number of clients, first after the end of the
stream, then while a stream without end is learned at full speed. Last, in rounds one after the other: images
a second that the server answers to the most clients, and those that a bare loop over the same snapshot
decodes and predicts in batches of 32 with one thread; the median, lowest and highest ratio of the rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from machine import machine
from PIL import Image

from streamcl.config.load import config_from_dict, dump_config
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute
from streamcl.factory.source import build_source
from streamcl.runs.directory import config_of
from streamcl.serving.client import Client
from streamcl.serving.prediction.predictor import Predictor

VIT = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "image_size": 98, "depth": 11}
BATCH = 32
ENDLESS = Path(__file__).with_name("endless_digits.py")
READY_WITHIN = 300.0
LEARNING_FIRST = 128  # records that are learned before anything is measured


def main() -> None:
    """Measure both servers and the bare loop; print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    samples = digits()
    images = [_png(each) for each in samples]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("| | clients | p50 ms | p99 ms | answers a second |\n|---|---|---|---|---|", flush=True)
        with serving(folder / "idle", samples, 256) as client:
            wait_until(lambda: client.status().learning == "finished")
            compute = build_compute(config_of(folder / "idle" / "run"))
            latencies("idle", client, images, arguments)
            ratios = rates(client, folder / "idle" / "run", images, arguments)
        with serving(folder / "busy", samples, None) as client:
            wait_until(lambda: newest_offset(client) >= LEARNING_FIRST)
            before = newest_offset(client), time.monotonic()
            latencies("learning", client, images, arguments)
            learned = (newest_offset(client) - before[0]) / (time.monotonic() - before[1])
        print(f"\n{learned:.1f} records learned a second meanwhile")
        print(f"served / bare: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps(machine(compute)))


def digits() -> list[Sample]:
    """Return the demo's first images."""
    source = build_source(config_from_dict({"source": "demo_digits", "backbone": VIT}))
    samples = list[Sample]()
    for event in source:
        samples += getattr(event, "samples", ())
        if len(samples) >= 64:
            break
    source.close()
    return samples


@contextmanager
def serving(folder: Path, samples: Sequence[Sample], most: int | None) -> Iterator[Client]:
    """Yield a client of a server of its own process, which learns the samples again and again."""
    folder.mkdir()
    shutil.copy(ENDLESS, folder)
    images, labels = [each.image for each in samples], [str(each.label) for each in samples]
    np.savez(folder / "digits.npz", images=np.stack(images), labels=labels)
    config = config_from_dict(
        {
            "name": folder.name,
            "run_dir": str(folder / "run"),
            "source": {"class": "endless_digits:digits"},
            "backbone": VIT,
            "batch": BATCH,
            "max_samples": most,
            "evaluate": {"hold_out": 0},  # as when the figures of docs were measured
            "threads": 1,
        }
    )
    (folder / "stream.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "streamcl", "serve", "stream.yaml", "--port", "0", "--threads", "1"]
    with (folder / "out.txt").open("w") as out, (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        said = folder / "out.txt"
        wait_until(lambda: process.poll() is not None or said.read_text().startswith("serving on "))
        if process.poll() is not None:
            raise SystemExit((folder / "errors.txt").read_text())
        client = Client(said.read_text().split()[2])
        client.wait_until_ready(READY_WITHIN)
        yield client
    finally:
        process.terminate()
        process.wait(60)


def latencies(name: str, client: Client, images: Sequence[bytes], arguments: argparse.Namespace) -> None:
    """Print a row for each number of clients."""
    for count in arguments.clients:
        times, taken = answered(client, images, count, requests=arguments.requests)
        cuts = quantiles(times, n=100)
        row = f"{1000 * median(times):.0f} | {1000 * cuts[98]:.0f} | {len(times) / taken:.1f}"
        print(f"| {name} | {count} | {row} |", flush=True)


def answered(
    client: Client, images: Sequence[bytes], count: int, *, requests: int = sys.maxsize, seconds: float = 1e9
) -> tuple[list[float], float]:
    """Return the seconds of each request of `count` clients, and of all together."""
    address, times, left = urlsplit(client.url), list[float](), iter(range(requests))
    began = time.perf_counter()
    lock = threading.Lock()

    def ask() -> None:
        connection = HTTPConnection(address.hostname or "", address.port, timeout=120)
        while time.perf_counter() - began < seconds:
            with lock:
                number = next(left, None)
            if number is None:
                break
            start = time.perf_counter()
            connection.request("POST", "/v1/predict", images[number % len(images)])
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"answered {response.status}")
            times.append(time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return times, time.perf_counter() - began


def rates(client: Client, run: Path, images: Sequence[bytes], arguments: argparse.Namespace) -> list[float]:
    """Return the ratio of both rates in each round; one round before them is not counted."""
    predictor = Predictor(run, threads=1)
    predictor.refresh()
    ratios = list[float]()
    for number in range(arguments.rounds + 1):
        times, taken = answered(client, images, max(arguments.clients), seconds=arguments.seconds)
        served = len(times) / taken
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < arguments.seconds:
            predictor.predict([images[(done + each) % len(images)] for each in range(BATCH)])
            done += BATCH
        if number:
            ratios.append(served / (done / (time.perf_counter() - began)))
    predictor.close()
    return ratios


def newest_offset(client: Client) -> int:
    """Return how far the stream is learned."""
    newest = client.status().newest
    return 0 if newest is None else newest.offset


def wait_until(condition: Any) -> None:
    """Wait until `condition()`, or end the program."""
    end = time.monotonic() + READY_WITHIN
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("it was not ready in time")
        time.sleep(0.1)


def _png(sample: Sample) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sample.image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
