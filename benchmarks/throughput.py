"""Prints images per second of streamcl's whole loop beside the floor: a bare LoRA step on the same backbone.

    python benchmarks/throughput.py [--precision bf16-mixed|32-true|auto] [--batch 64] [--size 70]
        [--repeats 5] [--device auto|cpu|cuda] [--images cifar100_dev|random] [--only online_lora,ridge_lora]
        [--clock wall|cpu] [--out FOLDER]

forward: the frozen backbone alone. floor: LoRA forward + backward + Adam on pixels that are ready. reference:
the published code's step, re-enacted. The others are whole runs: source, predict, learn, detector, metrics,
sinks, checkpoints as shipped (every 2000 samples; waiting for the disk is counted); online_lora has the
paper's four hard samples, last_4_blocks and lbp_wht are it with these options, those in _compiled have
`backbone.compile`, those in _graphed `backbone.cuda_graphs` (a GPU only), those in _int8 `backbone.int8`
(float32 on a CPU only); what compiling takes is not counted. All take turns in one process, round after
round, in an order that rotates; a round's ratio is to the floor of the same round.
`--clock cpu` counts this process's processor time, threads added up, for a machine that is not quiet. Where
the processor's energy counters can be read (RAPL, see energy.py), joules an image stand beside.
Pretrained ViT-S (fetch:vit-s-focus in STREAMCL_CACHE) and CIFAR-100 images (STREAMCL_DEV_DATA); where one is
absent this says so and stops, unless `--images random` and `--weights none` stand in. predict_full and
predict_80 predict by `ridge`, once it has learned the images before the first round, with all of the work of
the blocks and with 80 % of it (`streamcl predict --budget`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import CLASSES, Bare, Forward, Reference
from energy import ABSENT, EnergyMeter
from machine import machine
from published_learner import ONLINE_LORA

from streamcl.benchmark.cells import SharedResources
from streamcl.config.load import config_from_dict
from streamcl.config.options.run import RunConfig
from streamcl.errors import StreamclError
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute
from streamcl.factory.parts import build_learner
from streamcl.learners.exit_plan import plan_exits
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute, wait_for
from streamcl.runs.open import open_run
from streamcl.runs.run import Run

LEARNERS: dict[str, Any] = {
    "online_lora": ONLINE_LORA,
    "last_4_blocks": {**ONLINE_LORA, "last_blocks": 4},
    "lbp_wht": {**ONLINE_LORA, "backprop": {"lbp_wht": {"order": 3}}},
    "grad_filter": {**ONLINE_LORA, "backprop": {"grad_filter": {"patch": 2}}},
    "grad_filter_pooled": {
        **ONLINE_LORA,
        "backprop": {"grad_filter": {"patch": 2, "pool_activations": True}},
    },
    "ridge_lora": "ridge_lora",
    "ridge": "ridge",
    "ridge_lora_compiled": "ridge_lora",
    "ridge_compiled": "ridge",
    "ridge_lora_graphed": "ridge_lora",
    "ridge_graphed": "ridge",
    "ridge_lora_int8": "ridge_lora",
    "ridge_int8": "ridge",
}
COMPILED, GRAPHED, INT8 = "_compiled", "_graphed", "_int8"
"""Endings of learners whose backbone is compiled, or replayed as CUDA graphs, which a CPU does not have, or
whose frozen blocks multiply in int8."""
PREDICTING = {"predict_full": 1.0, "predict_80": 0.8}
"""Shares of the work of the blocks with which images are predicted."""
PLANNED = 256
"""Images from which the thresholds of a share are taken."""
BARE: dict[str, type[Bare]] = {"forward": Forward, "floor": Bare, "reference": Reference}
SHARE = {"forward": 4, "floor": 4, "reference": 16}
"""A round of these is so many times shorter than one of a whole run."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Timed:
    """Something that works through images; `go` returns the seconds that it took for so many."""

    def __init__(
        self, go: Callable[[int], None], compute: Compute, images: int, clock: Callable[[], float]
    ) -> None:
        self._go, self._compute, self.images, self._clock = go, compute, images, clock
        self._meter = EnergyMeter()
        self.rates: list[float] = []
        self.joules: list[float] = []

    def round(self) -> None:
        wait_for(self._compute.device)
        counters, began = self._meter.read(), self._clock()
        self._go(self.images)
        wait_for(self._compute.device)
        self.rates.append(self.images / (self._clock() - began))
        if (spent := self._meter.joules(counters)) is not None:
            self.joules.append(spent / self.images)


def bare(kind: str, backbone: Backbone, compute: Compute, args: argparse.Namespace) -> Timed:
    made = BARE[kind](backbone, compute)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, 3, backbone.image_size, backbone.image_size)
    pixels = torch.randn(shape, generator=generator).to(compute.device)
    targets = torch.randint(CLASSES, (args.batch,), generator=generator).to(compute.device)

    def go(images: int) -> None:
        for _ in range(images // args.batch):
            made.step(pixels, targets)

    timed = Timed(
        go, compute, max(1, args.round // SHARE[kind] // args.batch) * args.batch, CLOCKS[args.clock]
    )
    go(2 * args.batch)
    return timed


def complete_run(run: Run, compute: Compute, args: argparse.Namespace) -> tuple[Timed, float]:
    """A timed run past its beginning (where ridge_lora adapts), and the images per second until there."""
    predictions: Iterator[Any] = iter(run)
    saver: Any = run.processor.parts.checkpoints

    def go(images: int) -> None:
        for _ in range(images):
            if next(predictions, None) is None:
                raise SystemExit("the stream was too short")
        saver.wait()  # what is still being written belongs to this round

    clock = CLOCKS[args.clock]
    first = Timed(go, compute, args.begin, clock)
    first.round()
    return Timed(go, compute, args.round, clock), first.rates[0]


def predicting(share: float, backbone: Backbone, data: Path, args: argparse.Namespace) -> Timed:
    """Predictions of images in chunks of a batch, as `streamcl predict --budget` makes them."""
    config = configuration("ridge", data, data.parent, args)
    compute = build_compute(config).for_requests()
    learner: Any = build_learner(config, backbone, compute)
    pack = np.load(data)
    samples = [Sample(f"{i}", x, str(y)) for i, (x, y) in enumerate(zip(pack["x"], pack["y"], strict=True))]
    parts = [tuple(samples[start : start + args.batch]) for start in range(0, len(samples), args.batch)]
    learned, planned = args.begin // args.batch, PLANNED // args.batch
    for place, part in enumerate(parts[:learned]):
        learner.learn(Batch(place * args.batch, part))
    exits = learner.capabilities.early_exit
    never = [float("inf")] * (len(exits.costs) - 1)
    margins = torch.cat([exits.predict(part, never).margins for part in parts[learned : learned + planned]])
    plan = plan_exits(margins[:, :-1], exits.costs, share)
    if plan is None:
        raise SystemExit(f"the first exit takes more than {share:.0%}")

    def go(images: int) -> None:
        for part in parts[learned + planned :][: images // args.batch]:
            if share == 1.0:
                learner.logits(part)
            else:
                exits.predict(part, plan.thresholds)

    timed = Timed(go, compute, max(1, args.round // 4 // args.batch) * args.batch, CLOCKS[args.clock])
    go(2 * args.batch)
    return timed


def configuration(name: str, data: Path, folder: Path, args: argparse.Namespace) -> RunConfig:
    return config_from_dict(
        {
            "name": name,
            "run_dir": str(folder / name),
            "source": {"name": "npz", "args": {"path": str(data)}},
            "scenario": {"name": "disjoint", "parts": 10},
            "batch": args.batch,
            "backbone": {
                **backbone_options(args),
                "compile": name.endswith(COMPILED),
                "cuda_graphs": name.endswith(GRAPHED),
                "int8": name.endswith(INT8) or None,
            },
            "learner": LEARNERS[name],
            "precision": args.precision,
            "device": args.device,
            "evaluate": {"every_samples": None, "at_part_end": False, "at_stream_end": False},
            "report": {"samples": 0},
        }
    )


def backbone_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": args.backbone,
        "weights": args.weights,
        "image_size": args.size,
        **({"depth": args.depth} if args.depth else {}),
    }


def images(args: argparse.Namespace, folder: Path) -> Path:
    """An .npz long enough for every round: CIFAR-100's training images over and over, or noise."""
    needed = args.begin + args.round * args.repeats + args.batch
    path = folder / "images.npz"
    if args.images == "random":
        generator = np.random.default_rng(0)
        side = args.stored or args.size
        x = generator.integers(0, 256, (min(needed, 4096), side, side, 3), np.uint8)
        y = generator.integers(0, CLASSES, len(x))
    else:
        file = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data")) / "cifar100_dev.npz"
        if not file.exists():
            raise SystemExit(f"skipped: {file} is absent; --images random stands in for it")
        pack = np.load(file)
        x, y = pack["x"][pack["split"] == 0], pack["y"][pack["split"] == 0]
    rows = np.random.default_rng(0).permutation(len(x))[np.arange(needed) % len(x)]  # packs lie by class
    np.savez(path, x=x[rows], y=y[rows], split=np.zeros(needed, np.int64))
    return path


def measure(args: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    data = images(args, folder)
    settings = configuration("online_lora", data, folder, args)
    compute = build_compute(settings)
    shared = SharedResources()
    try:
        backbone = shared.backbone(settings, compute)
    except StreamclError as error:
        raise SystemExit(f"skipped: no backbone: {error}") from error
    timed: dict[str, Timed] = {}
    begin: dict[str, float] = {}
    for name in [*BARE, *LEARNERS, *PREDICTING]:
        if args.only and name not in {"floor", *args.only.split(",")}:
            continue
        if name.endswith(GRAPHED) and compute.device.type != "cuda":
            continue
        if name.endswith(INT8) and (compute.device.type != "cpu" or compute.precision != "32-true"):
            continue
        if name in BARE:
            timed[name] = bare(name, backbone, compute, args)
        elif name in PREDICTING:
            timed[name] = predicting(PREDICTING[name], backbone, data, args)
        else:
            config = configuration(name, data, folder, args)
            run = open_run(config, vit=shared.backbone)
            timed[name], begin[name] = complete_run(stack.enter_context(run), compute, args)
    names = list(timed)
    for number in range(args.repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            timed[name].round()
        print(f"round {number + 1} of {args.repeats}", file=sys.stderr, flush=True)
    return {
        "machine": machine(compute),
        "options": {k: v for k, v in vars(args).items() if k != "out"} | {"precision": compute.precision},
        "results": {name: figures(one, timed["floor"], begin.get(name)) for name, one in timed.items()},
    }


def figures(one: Timed, floor: Timed, begin: float | None) -> dict[str, Any]:
    ratios = [mine / its for mine, its in zip(one.rates, floor.rates, strict=True)]
    low, middle, high = np.percentile(one.rates, [25, 50, 75])
    worst, ratio, best = np.percentile(ratios, [25, 50, 75])
    rates = {"images_per_s": middle, "quartiles": [low, high], "rounds": one.rates}
    joules = {"joules_per_image": float(np.median(one.joules))} if one.joules else {}
    return {**rates, **joules, "of_floor": ratio, "of_floor_quartiles": [worst, best], "at_begin": begin}


def table(found: dict[str, Any]) -> str:
    where, how = found["machine"], found["options"]
    metered = all("joules_per_image" in row for row in found["results"].values())
    lines = [
        f"# Throughput, {where['date']}",
        "",
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, {where['device']}, torch "
        f"{where['torch']}; {how['backbone']}, depth {how['depth']}, {how['size']} px, batch {how['batch']}, "
        f"{how['precision']}, {how['images']} images; {how['repeats']} rounds, "
        f"{how['clock']} clock; load {where['load']}.{'' if metered else ' ' + ABSENT}",
        "",
        "| | images/s, median (quartiles) | of the floor, median (quartiles) | at its beginning |"
        + " joules an image |" * metered,
        "|---|---|---|---|" + "---|" * metered,
    ]
    for name, row in found["results"].items():
        (low, high), (worst, best) = row["quartiles"], row["of_floor_quartiles"]
        begin = f"{row['at_begin']:.1f}" if row["at_begin"] else ""
        lines.append(
            f"| {name} | {row['images_per_s']:.1f} ({low:.1f} - {high:.1f}) "
            f"| {row['of_floor']:.2f} ({worst:.2f} - {best:.2f}) | {begin} |"
            + (f" {row['joules_per_image']:.2f} |" if metered else "")
        )
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if found["machine"]["device"] == "cpu" else "cuda"
    stem = f"throughput-{found['machine']['date']}-{device}-{found['options']['precision']}"
    (out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text(table(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=70, help="side in pixels that the backbone sees")
    parser.add_argument("--stored", type=int, default=None, help="side of random images; default: --size")
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--round", type=int, default=2048, help="images of a whole run in one round")
    parser.add_argument("--begin", type=int, default=1024, help="images before the first round")
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", default="fetch:vit-s-focus")
    parser.add_argument("--depth", type=int, default=11, help="0: all blocks")
    parser.add_argument("--images", default="cifar100_dev", choices=["cifar100_dev", "random"])
    parser.add_argument("--only", default="", help="names, by commas; the floor is always timed")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with ExitStack() as stack:
        found = measure(args, stack)
    print(table(found))
    write(found, args.out)


if __name__ == "__main__":
    main()
