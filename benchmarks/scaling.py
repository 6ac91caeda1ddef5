"""Prints how the cost of a step grows along each axis, with the measured exponent, and plots it.

    python benchmarks/scaling.py [--axes classes,resolution,batch,backbone,width,requests,stream,pauses]
        [--quick] [--repeats 5] [--clock wall|cpu] [--out FOLDER] [--cache FOLDER] [--records N] [--pack NAME]

classes: a step of the linear and of the ridge head. resolution, batch, backbone: a step of online_lora on a
ViT with random weights, with the paper's four hard samples. width: an update and a solve of the ridge head.
requests: an exact request of so many samples in a whole run, and what share of an hour so many of them take.
stream: a run of 10,000 batches and 50 consolidations on a tiny model, batches of its end side by side with
such of its start, and its memory.
pauses: a ridge_lora run, the share of its time in commits, and a folder of JPEG images, the share of it that
waits for decoding.
Further axes, which take minutes each, are described in `scaling_large.py`.
Within an axis the points take turns; a point's time is the median of its repeats.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from published_learner import ONLINE_LORA
from scaling_large import LARGE

from streamcl.config.load import config_from_dict
from streamcl.config.options.run import RunConfig
from streamcl.evaluation.throughput import memory_mb
from streamcl.events import Batch, PredictionRecord, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.linear import LinearHead
from streamcl.heads.ridge import RidgeHead
from streamcl.processor.loop import StreamProcessor
from streamcl.runs.open import open_run
from streamcl.runs.run import Run
from streamcl.shift.detector import SilentDetector
from streams.prefetch import Prefetcher

Step = Callable[[], Any]
Points = dict[float, Step]
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FIGURES = (
    "hour", "late_over_early", "consolidations", "memory_mb", "commit_share", "decode_wait_share", "accuracy",
    "accuracy_end", "median_batch_s", "whole_s", "longest_own_s", "files_mb", "messages", "images_per_s",
    "share_of_hour_percent",
)  # fmt: skip
EVERY, WARM = 200, 100
"""Batches between two consolidations in the long run, and before its start is looked at."""


class Regular(SilentDetector):
    """Calls every 200th batch a plateau."""

    def __init__(self) -> None:
        self._seen = 0
        self.plateau: str | None = None

    def update(self, loss: float) -> None:
        super().update(loss)
        self._seen += 1
        self.plateau = "regular" if self._seen % EVERY == 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = int(state["seen"])


def samples(count: int, side: int, classes: int = 10, seed: int = 0) -> list[Sample]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    return [Sample(f"s{seed}-{i}", pixels[i], str(i % classes)) for i in range(count)]


def stream(count: int, side: int, classes: int = 10) -> Iterator[Sample]:
    """The stream of the runs here: noise, the same pictures over and over, with ids of their own."""
    pool = samples(min(count, 512), side, classes)
    for i in range(count):
        yield Sample(f"{i}", pool[i % len(pool)].image, str(i % classes))


def configuration(**options: Any) -> RunConfig:
    quiet = {
        "evaluate": {"every_samples": None, "at_part_end": False, "at_stream_end": False},
        "report": {"samples": 0},
    }
    return config_from_dict({"source": "x", "shift": "none", "precision": "32-true", **quiet, **options})


def vit(name: str, size: int, **options: Any) -> dict[str, Any]:
    return {"name": name, "weights": "none", "image_size": size, **options}


def learning(backbone: dict[str, Any], batch: int) -> Step:
    config = configuration(learner=ONLINE_LORA, backbone=backbone)
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    given = Batch(0, tuple(samples(batch, backbone["image_size"])))
    return lambda: learner.learn(given)


def classes(quick: bool) -> dict[str, Points]:
    def linear(count: int) -> Step:
        head, x, y = LinearHead(384), torch.randn(64, 384), torch.randint(count, (64,))
        head.grow(count)
        optimizer = torch.optim.Adam(head.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(x), y).backward()
            optimizer.step()

        return step

    counts = [10, 100, 1000] if quick else [10, 100, 1000, 10_000]
    return {
        "linear head": {n: linear(n) for n in counts},
        "ridge head": {n: ridge_step(512, n) for n in counts},
    }


def ridge_step(width: int, count: int) -> Step:
    """An update by a batch, scores, and the solve that they need: every batch, which is the worst case."""
    head, x, y = RidgeHead(width, refit_fraction=0.0), torch.randn(64, width), torch.randint(count, (64,))
    head.grow(count)

    def step() -> None:
        head.update(x, y)
        head.scores(x)

    return step


def resolution(quick: bool) -> dict[str, Points]:
    sides = [42, 70, 98] if quick else [42, 70, 98, 140, 196]
    tokens = {side: vit("vit_small_patch14_dinov2", side, depth=6) for side in sides}
    return {"online_lora, by pixels": {s**2: learning(b, 8) for s, b in tokens.items()}}


def batch(quick: bool) -> dict[str, Points]:
    counts = [8, 32] if quick else [8, 16, 32, 64, 128]
    return {"online_lora": {n: learning(vit("vit_small_patch14_dinov2", 70, depth=4), n) for n in counts}}


def backbone(quick: bool) -> dict[str, Points]:
    names = {"tiny": 5.4e6, "small": 21.6e6} | ({} if quick else {"base": 85.7e6})
    made = {size: learning(vit(f"vit_{name}_patch16_224", 64), 16) for name, size in names.items()}
    return {"online_lora, by parameters": made}


def width(quick: bool) -> dict[str, Points]:
    widths = [256, 512, 1024] if quick else [512, 1024, 2048, 4096]
    head = {w: RidgeHead(w) for w in widths}
    x, y = {w: torch.randn(64, w) for w in widths}, torch.randint(100, (64,))

    def update(w: int) -> Step:
        head[w].grow(100)
        return lambda: head[w].update(x[w], y)

    return {
        "update": {w: update(w) for w in widths},
        "update and solve": {w: ridge_step(w, 100) for w in widths},
    }


AXES: dict[str, Callable[[bool], dict[str, Points]]] = {
    "classes": classes,
    "resolution": resolution,
    "batch": batch,
    "backbone": backbone,
    "width": width,
}


def timed(points: Points, repeats: int, clock: Callable[[], float]) -> dict[float, list[float]]:
    """Seconds of each point, in turns, after one that is not counted."""
    for step in points.values():
        step()
    seconds: dict[float, list[float]] = {x: [] for x in points}
    for _ in range(repeats):
        for x, step in points.items():
            began = clock()
            step()
            seconds[x].append(clock() - began)
    return seconds


def exponent(curve: Mapping[float, float]) -> float:
    """The slope of the line through the points in logarithms: 1 where cost grows as the axis does."""
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def requests(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds that the stream stands still for an exact request of so many samples (tiny ViT, ridge)."""
    counts = [50, 100, 200] if args.quick else [50, 100, 200, 500]
    total = 3 * sum(counts)
    config = own_run("requests", folder, total, 32, learner={"name": "ridge", "blocks": [0, 1, 2]})
    with open_run(config) as run:
        list(run)
        curve, first = {}, 0
        for count in counts:
            run.forget(offsets=(first, first + count), guarantee="exact")
            began = time.perf_counter()
            run.processor.forget()
            curve[count], first = time.perf_counter() - began, first + count
    share = {each: each * curve[counts[-1]] / 3600 for each in (1, 10, 60, 600, 1000)}
    return {"seconds": {"exact request": curve}, "hour": share}


def long_stream(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The seconds of each batch of a long run, its consolidations and memory, and its end beside its start.

    Those two are states of one run that go on side by side, batch by batch in turns, so that what else the
    processor does meets both alike.
    """
    batches, compared = (2000, 200) if args.quick else (10_000, 1000)
    config = own_run("stream", folder, 8 * (batches + compared), 32, batch=8, learner=ONLINE_LORA)
    config = config.model_copy(update={"shift": configuration(shift={"class": "scaling:Regular"}).shift})
    early = config.model_copy(update={"run_dir": str(folder / "early")})
    clock, memory, times = CLOCKS[args.clock], [], []
    with open_run(config) as run:
        batch_times(iter(run), WARM, clock)
    shutil.copytree(folder / "stream", folder / "early")
    with open_run(config) as run:
        predictions = iter(run)
        for _ in range(10):
            times += batch_times(predictions, (batches - WARM) // 10, clock)
            memory.append(memory_mb())
        consolidations = len(run.processor.shift_handler.consolidations)
    with open_run(early) as start, open_run(config) as end:
        sides = iter(start), iter(end)
        pairs = [[batch_times(side, 1, clock)[0] for side in sides] for _ in range(compared - WARM)]
    stretches = np.array_split(np.array(pairs), 25)
    ratios = [float(np.median(late) / np.median(first)) for first, late in (part.T for part in stretches)]
    tenths = [float(np.median(part)) for part in np.array_split(times, 10)]
    return {
        "seconds": {"a batch": {(i + 0.5) * batches / 10: t for i, t in enumerate(tenths)}},
        "late_over_early": [float(np.quantile(ratios, share)) for share in (0.25, 0.5, 0.75)],
        "consolidations": consolidations,
        "memory_mb": memory,
    }


def batch_times(
    predictions: Iterator[PredictionRecord], count: int, clock: Callable[[], float]
) -> list[float]:
    """The seconds of so many batches of eight samples."""
    seconds = []
    for _ in range(count):
        began = clock()
        for _ in range(8):
            next(predictions)
        seconds.append(clock() - began)
    return seconds


def pauses(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Shares of the time of a ridge_lora run that go to commits, and to waiting for decoded pictures."""
    count = 2048 if args.quick else 8192
    small = {"backbone": vit("vit_small_patch14_dinov2", 70, depth=11), "precision": "auto", "threads": None}
    config = own_run("commits", folder, count, 32, **small, learner="ridge_lora", batch=64)
    with open_run(config) as run:
        spent, whole = shares(run, run.processor, StreamProcessor.commit)
    jpeg = pictures(folder / "jpeg", 512 if args.quick else 2048)
    source = {"name": "image_folder", "args": {"root": str(jpeg), "test_percent": 0}}
    config = configuration(
        **small, source=source, learner=ONLINE_LORA, batch=64, run_dir=str(folder / "decode")
    )
    with open_run(config) as run:
        idle, busy = shares(run, run.source, Prefetcher._take)
    return {"commit_share": spent / whole, "decode_wait_share": idle / busy}


def shares(run: Run, owner: object, function: Callable[..., Any]) -> tuple[float, float]:
    """Seconds in a method of `owner` and in the whole run, less the first batch and the end."""
    method, spent = getattr(owner, function.__name__), [0.0]

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(owner, function.__name__, timed)
    predictions = iter(run)
    next(predictions)
    spent[0], began = 0.0, time.perf_counter()
    for _ in predictions:
        pass
    return spent[0], time.perf_counter() - began


def pictures(folder: Path, count: int) -> Path:
    """JPEG files of 256 pixels a side in ten class folders: smooth noise, so that they are of usual sizes."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"class{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{i}.jpg", quality=90)
    return folder


def own_run(name: str, folder: Path, count: int, side: int, **options: Any) -> RunConfig:
    arguments = {"count": count, "side": side}
    usual = {
        "backbone": vit("vit_tiny_patch16_224", side, args=TINY),
        "threads": 1,
        "source": {"class": "scaling:stream", "args": arguments, "deterministic": True},
    }
    return configuration(**{**usual, **options}, name=name, run_dir=str(folder / name))


WHOLE: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "requests": requests,
    "stream": long_stream,
    "pauses": pauses,
    **LARGE,
}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    if name in WHOLE:
        with tempfile.TemporaryDirectory() as folder:
            found = WHOLE[name](args, Path(folder))
    else:
        repeats = {
            label: timed(points, args.repeats, CLOCKS[args.clock])
            for label, points in AXES[name](args.quick).items()
        }
        medians = {
            label: {x: float(np.median(t)) for x, t in curve.items()} for label, curve in repeats.items()
        }
        found = {"seconds": medians, "repeats": repeats}
    exponents, of_memory = (
        {label: exponent(curve) for label, curve in found.get(kind, {}).items() if len(curve) > 1}
        for kind in ("seconds", "megabytes")
    )
    return {**found, "exponents": exponents, "exponents_of_memory": of_memory}


def plot(name: str, found: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in ("seconds", "megabytes", "accuracy") if found.get(kind)]
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.5), squeeze=False)
    for kind, axes in zip(kinds, panels[0], strict=True):
        for label, curve in found[kind].items():
            slopes = {"seconds": found["exponents"], "megabytes": found["exponents_of_memory"]}.get(kind, {})
            slope = f": {slopes[label]:.2f}" if label in slopes else ""
            axes.plot(list(curve), list(curve.values()), "o-", label=f"{label}{slope}")
        axes.set(xlabel=name.replace("_", " "), ylabel=kind)
        if kind != "accuracy":
            axes.set(xscale="log", yscale="log")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def lines(name: str, found: dict[str, Any]) -> list[str]:
    rows = [f"## {name}", ""]
    for label, curve in found.get("seconds", {}).items():
        points = ", ".join(f"{x:g}: {1e3 * t:.2f} ms" for x, t in curve.items())
        rows.append(f"- {label}: exponent {found['exponents'].get(label, math.nan):.2f} ({points})")
    for label, curve in found.get("megabytes", {}).items():
        points = ", ".join(f"{x:g}: {size:.1f} MB" for x, size in curve.items())
        slope = found["exponents_of_memory"].get(label, math.nan)
        rows.append(f"- {label}, memory: exponent {slope:.2f} ({points})")
    for key in FIGURES:
        if key in found:
            rows.append(f"- {key}: {json.dumps(found[key])}")
    return [*rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--axes", default=",".join(name for name in (*AXES, *WHOLE) if name not in LARGE))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--cache", type=Path, help="folder in which features are kept")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--pack", default="cifar100_dev")
    parser.add_argument("--images", type=int, default=2000, help="of the axis between, at most")
    parser.add_argument("--classes", default="100,1000,10000", help="of the axis solves")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    where = machine(build_compute(configuration()))
    for name in args.axes.split(","):
        found = measure(name, args)
        stem = args.out / f"scaling-{name}-{where['date']}"
        report = {"machine": where, "options": {"quick": args.quick, "clock": args.clock}, **found}
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        text = "\n".join(lines(name, found))
        place = f"{where['cpu']}, {where['threads']} threads, {where['device']}, load {where['load']}"
        stem.with_suffix(".md").write_text(f"# Scaling, {where['date']}\n\n{place}\n\n{text}\n", "utf-8")
        if "seconds" in found or "accuracy" in found:
            plot(name, found, stem.with_suffix(".png"))
        print(text, flush=True)


if __name__ == "__main__":
    main()
