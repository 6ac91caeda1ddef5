"""Axes of `scaling.py` that reach further: large heads, solves beside a stream, a million records, ranks.

    python benchmarks/scaling.py --axes many_classes,wide,solves,between,records,many_ranks,requests_an_hour
        [--quick] [--cache FOLDER] [--records 1000000] [--pack cifar100_dev] [--images 2000]

many_classes, wide: an update by 64 samples, their scores and a solve of the ridge head, with the bytes of its
sums and the peak memory of a process that does nothing else; of 3,072 features by classes, and with a
thousand classes by the number of random features. solves: batches of 64 go through a head whose classes are
all known; the longest of them by the clock, with and without `defer_solve`. between: accuracy before learning
of a development pack by `defer_solve`, and where nothing is taken in between solves, with the number of
solves, on features of the default backbone, which --cache keeps. records: a
whole run whose images are the features; processor time, memory and files as records add up. many_ranks: the
work of the first of so many ranks for a batch without a solve, and the bytes that it would receive, counted
in one process.
requests_an_hour: so many exact requests while 3,600 records come, and what share of an hour they take; of
the most frequent ones a quarter of an hour is run.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from published_learner import ONLINE_LORA
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.distributed.process_group import ProcessGroup
from streamcl.evaluation.throughput import memory_mb
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.ridge_solver import RidgeSolver
from streamcl.heads.solving import solve_ridge
from streamcl.learners.factory import LearnerContext
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.runs.open import open_run

Found = dict[str, Any]
BATCH = 64
WIDTH = 3072  # of the default backbone's features
INPUTS = 768  # that random features are of
MB = 1e6
TRACE_RIDGE = RidgeOptions().trace_ridge


def head_of(width: int, classes: int, *, projection: int | None = None, **options: Any) -> RidgeHead:
    """A ridge head with the options of `ridge` by default."""
    defaults = RidgeOptions().model_dump(
        include={"variance_ridge", "gcv_margin", "trace_ridge", "refit_fraction"}
    )
    head = RidgeHead(width, projection=projection, **{**defaults, **options})
    head.grow(classes)
    return head


def drawn(rows: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [N, D] around the means of their classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    means = torch.randn(classes, 16, generator=torch.Generator().manual_seed(10**6))
    spread = torch.randn(16, width, generator=torch.Generator().manual_seed(10**6 + 1))
    return means[targets] @ spread + torch.randn(rows, width, generator=generator), targets


def parts_of_a_step(size: tuple[int, int, int | None], repeats: int) -> Found:
    """Processor seconds of an update, scores and a solve, and megabytes; runs in a process of its own."""
    width, classes, projection = size
    torch.set_num_threads(1)
    before = memory_mb()
    head = head_of(width, classes, projection=projection, refit_fraction=1.0)
    spent: dict[str, list[float]] = {"update": [], "scores": [], "solve": []}
    for repeat in range(repeats):
        x, y = drawn(BATCH, width, classes, repeat)
        began = time.process_time()
        head.update(x, y)
        assert head.statistics.gram.trace > 0  # rows are taken in when the sum is looked at
        spent["update"].append(time.process_time() - began)
        began = time.process_time()
        head.exact_weights()
        spent["solve"].append(time.process_time() - began)
        began = time.process_time()
        head.scores(x)
        spent["scores"].append(time.process_time() - began)
    sums = sum(each.nbytes for each in arrays(head.statistics.state_dict()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {**{name: float(np.median(each)) for name, each in spent.items()}, "sums": sums / MB, "peak": peak}


def arrays(state: Mapping[str, Any]) -> Iterator[Any]:
    for value in state.values():
        yield from arrays(value) if isinstance(value, dict) else [value]


def heads(sizes: Mapping[float, tuple[int, int, int | None]], repeats: int) -> Found:
    """The curves of `parts_of_a_step`, each point in a fresh process."""
    found: dict[float, Found] = {}
    for x, size in sizes.items():
        context = multiprocessing.get_context("spawn")
        small = max(size[0], size[2] or 0) ** 2 * size[1] < 2e10
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[x] = pool.submit(parts_of_a_step, size, repeats if small else 1).result()
        print(x, found[x], flush=True)

    def curve(name: str) -> dict[float, float]:
        return {x: each[name] for x, each in found.items()}

    seconds = {name: curve(name) for name in ("update", "scores", "solve")}
    return {"seconds": seconds, "megabytes": {"sums": curve("sums"), "peak": curve("peak")}}


def many_classes(args: argparse.Namespace, _: Path) -> Found:
    counts = [10, 100, 1000] if args.quick else [10, 100, 1000, 10_000]
    return heads({n: (WIDTH, n, None) for n in counts}, args.repeats)


def wide(args: argparse.Namespace, _: Path) -> Found:
    widths = [1250, 2500] if args.quick else [2500, 5000, 10_000, 20_000]
    return heads({w: (INPUTS, 1000, w) for w in widths}, args.repeats)


def solves(args: argparse.Namespace, _: Path) -> Found:
    """The longest and the median batch, by the clock, of a stream whose classes are all known."""
    width, batches = 512 if args.quick else WIDTH, 40  # a solve falls due after 16 batches
    found: Found = {"seconds": {}, "longest_own_s": {}, "median_batch_s": {}, "whole_s": {}}
    for classes in (10, 100, 1000) if args.quick else map(int, args.classes.split(",")):
        for defer in (None, 128, 1024):
            label = "at once" if defer is None else f"defer_solve: {defer}"
            seconds, own = batch_seconds(width, classes, defer, batches)
            values = max(seconds), max(own), float(np.median(seconds)), sum(seconds)
            for curves, value in zip(found.values(), values, strict=True):
                curves.setdefault(label, {})[classes] = value
            print(classes, label, [round(value, 3) for value in values], flush=True)
    return found


def batch_seconds(
    width: int, classes: int, defer: int | None, batches: int
) -> tuple[list[float], list[float]]:
    """Seconds of each batch, its scores by the weights in use and its update: by the clock, and of work.

    The work is that of the stream's own thread, so it has nothing of a solve in another one.
    """
    head = head_of(width, classes, refit_fraction=0.02, defer_solve=defer)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(classes, width, generator=generator)
    head.update(rows, torch.arange(classes), weight=50_000 // classes)
    head.exact_weights()
    seconds, own = [], []
    for seed in range(batches):
        x, y = drawn(BATCH, width, classes, seed)
        began = time.perf_counter(), time.thread_time()
        head.scores(x)
        head.update(x, y)
        seconds.append(time.perf_counter() - began[0])
        own.append(time.thread_time() - began[1])
    return seconds, own


def between(args: argparse.Namespace, _: Path) -> Found:
    """Accuracy before learning, in per cent, of two orders of a pack, by `defer_solve`."""
    from stability import IMAGES, read

    IMAGES.update({"train": 500, "test": 250} if args.quick else {"train": args.images, "test": 500})
    split = read([args.pack], args.cache)[args.pack]
    mixed = torch.randperm(len(split.x), generator=torch.Generator().manual_seed(0))
    part = split.y[mixed] * 10 // split.classes  # ten parts with a tenth of the classes each
    parted = mixed[part.argsort(stable=True)]
    orders = {"classes in any order": mixed, "a tenth of the classes at a time": parted}
    found: Found = {"accuracy": {}, "accuracy_end": {}, "solves": {}, "nothing_taken_in": {}}
    for order, rows in orders.items():
        x, y = split.x[rows], split.y[rows]
        of_old_weights = before_learning(x, y, split, rule=functools.partial(solve_ridge, TRACE_RIDGE))
        found["nothing_taken_in"][order] = of_old_weights
        print(order, "nothing taken in", of_old_weights, flush=True)
        for defer in (None, 64, 256, 1024):
            values = before_learning(x, y, split, defer_solve=defer)
            for name, value in zip(("accuracy", "accuracy_end", "solves"), values, strict=True):
                found[name].setdefault(order, {})[defer or 0] = value
            print(order, defer, values, flush=True)
    return found


def before_learning(x: Tensor, y: Tensor, split: Any, **options: Any) -> tuple[float, float, int]:
    """Per cent right before learning, and of test images by weights of all at the end; how many solves."""
    solved = RidgeSolver._solved
    with mock.patch.object(RidgeSolver, "_solved", autospec=True, side_effect=solved) as solves:
        head, correct = head_of(x.shape[1], 0, **options), 0
        for rows, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
            if head.classes:
                correct += int((head.scores(rows).argmax(dim=1) == targets).sum())
            head.grow(int(max(head.classes - 1, targets.max())) + 1)
            head.update(rows, targets)
    final = head.scores_refit(split.x_test).argmax(dim=1) == split.y_test
    return round(100 * correct / len(x), 2), round(100 * float(final.double().mean()), 2), solves.call_count


class PixelReader:
    """Features that are the pixels of images uint8 [8, 8, 3]."""

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        pixels = np.stack([np.asarray(sample.image) for sample in samples])
        return torch.from_numpy(pixels.reshape(len(samples), -1)).float() / 255


def pixel_learner(context: LearnerContext) -> RidgeLearner[Any]:
    """`ridge`, whose features are the pixels."""
    head = head_of(192, 0)
    learner: RidgeLearner[Any] = RidgeLearner(context.backbone, context.compute, head, blocks=(0,))
    learner.reader = PixelReader()
    return learner


def pixel_stream(count: int, classes: int = 100) -> Iterator[Sample]:
    """Records with ids of their own, whose 4,096 images come again and again."""
    generator = np.random.default_rng(0)
    means = generator.integers(60, 196, (classes, 8, 8, 3))
    pool = [
        np.clip(means[i % classes] + generator.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
        for i in range(4096 // classes * classes)
    ]
    for i in range(count):
        yield Sample(f"record-{i:08d}", pool[i % len(pool)], f"class-{i % classes:03d}")


def records(args: argparse.Namespace, folder: Path) -> Found:
    """Microseconds a record, memory and files of a run, by tenths of its records."""
    from scaling import own_run

    count = 20_000 if args.quick else args.records
    config = own_run(
        "records", folder, count, 8, batch=256, checkpoint={"every_samples": count // 50},
        learner={"class": "scaling_large:pixel_learner"},
        source={"class": "scaling_large:pixel_stream", "args": {"count": count}, "deterministic": True},
    )  # fmt: skip
    spent: dict[float, float] = {}
    memory: dict[float, float] = {}
    commits: dict[float, float] = {}
    with open_run(config) as run:
        commit, in_commits = run.processor.commit, [0.0]

        def timed() -> None:
            start = time.process_time()
            commit()
            in_commits[0] += time.process_time() - start

        run.processor.commit = timed  # type: ignore[method-assign]
        began = time.process_time()
        for seen, _ in enumerate(run, 1):
            if seen % (count // 10) == 0:
                now = time.process_time()
                spent[seen], began = (now - began) / (count // 10), now
                memory[seen], commits[seen] = memory_mb(), in_commits[0]
                in_commits[0] = 0.0
                print(seen, f"{1e6 * spent[seen]:.0f} us", memory[seen], commits[seen], flush=True)
        run.finish()
        place = run.folder
    files = {
        str(each.relative_to(place)): round(each.stat().st_size / MB, 2)
        for each in sorted(place.rglob("*")) if each.is_file() and each.stat().st_size > MB / 10
    }  # fmt: skip
    return {
        "seconds": {"a record": spent, "commits, of a tenth": commits},
        "megabytes": {"process": memory}, "files_mb": files,
    }  # fmt: skip


class CountedGroup(ProcessGroup):
    """The first of so many ranks that are not there: what they would send is counted, and stood in for."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.received = self.messages = 0

    def local_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return this rank's share, every so many-th sample."""
        return samples[:: self.world_size]

    def all_gather_rows(self, rows: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Return N rows, those of this rank's share [n, ...] again and again."""
        own = rows[: len(samples[:: self.world_size])]
        self._count(own)
        return own.repeat_interleave(self.world_size, dim=0)[: len(samples)]

    def all_reduce_gradients(
        self, gradients: Mapping[str, Tensor], replicated: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return the gradients, and add up as many as would come."""
        del replicated
        mine = torch.cat([each.flatten() for each in gradients.values()])
        self._count(mine)
        summed = mine.clone()
        for _ in range(1, self.world_size):
            summed += mine
        return dict(gradients)

    def _count(self, mine: Tensor) -> None:
        self.received += (self.world_size - 1) * mine.numel() * mine.element_size()
        self.messages += self.world_size > 1


def many_ranks(args: argparse.Namespace, _: Path) -> Found:
    """Processor seconds of the first rank and the bytes that it receives, for 64 images and for 64 a rank."""
    worlds = (1, 2, 4) if args.quick else (1, 2, 4, 8, 16)
    found: Found = {"seconds": {}, "megabytes": {}, "messages": {}, "images_per_s": {}}
    learners: dict[str, Any] = {
        "ridge": "ridge",
        "ridge_lora, settled": {"name": "ridge_lora", "lora": {"warmup_samples": 1}},
        "online_lora": ONLINE_LORA,
    }
    for name, learner in learners.items():
        for label, batch in (("64 in all", lambda _: BATCH), ("64 a rank", lambda world: BATCH * world)):
            for world in worlds if label == "64 in all" else worlds[::2]:
                step, group = ranked_step(learner, world, batch(world), args.quick)
                group.received = group.messages = 0
                seconds = float(np.median([step() for _ in range(args.repeats)]))
                values = (seconds, group.received / args.repeats / MB, group.messages / args.repeats)
                for key, value in zip(("seconds", "megabytes", "messages"), values, strict=True):
                    if value:
                        found[key].setdefault(f"{name}, {label}", {})[world] = value
                speeds = found["images_per_s"].setdefault(f"{name}, {label}", {})
                speeds[world] = round(batch(world) / seconds, 1)
                print(name, label, world, values, flush=True)
    return found


def ranked_step(
    learner: Any, world: int, batch: int, quick: bool
) -> tuple[Callable[[], float], CountedGroup]:
    """A step on the first of so many ranks, which returns its processor seconds."""
    size = 28 if quick else 70
    backbone = {
        "name": "vit_small_patch14_dinov2",
        "weights": "none",
        "image_size": size,
        "depth": 3 if quick else 11,
    }
    config = config_from_dict(
        {
            "source": "x",
            "learner": learner,
            "backbone": backbone,
            "shift": "none",
            "precision": "32-true",
            "threads": 1,
        }
    )
    compute, group = build_compute(config), CountedGroup(world)
    made: Any = build_learner(config, build_vit(config, compute), compute, group)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    taken = iter(range(10**9))

    def step() -> float:
        first = next(taken) * batch
        given = tuple(Sample(f"{first + i}", image, f"class {i % 20}") for i, image in enumerate(pixels))
        began = time.process_time()
        result = made.learn(Batch(first, given))
        assert result.learned
        return time.process_time() - began

    step()
    for head in made.statistics.heads if hasattr(made, "statistics") else ():
        head.update(
            torch.randn(20, head.width), torch.arange(20), weight=5000
        )  # so that no solve is due soon
    step()
    return step, group


def requests_an_hour(args: argparse.Namespace, folder: Path) -> Found:
    """Seconds that exact requests of one sample each take of an hour in which 3,600 records come."""
    from scaling import own_run

    seconds: dict[float, float] = {}
    used: dict[float, float] = {}
    for rate in (10, 100) if args.quick else (10, 100, 1000):
        part = 10 if args.quick else 4 if rate == 1000 else 1  # of an hour; the figures are of a whole one
        count = 3600 // part
        options = {"batch": 8, "learner": {"name": "ridge", "blocks": [0, 1, 2]}}
        config = own_run(f"hour-{rate}", folder, count, 32, **options)
        with open_run(config) as run:
            spent = [0.0, 0.0]
            forget = run.processor.forget

            def timed(forget: Callable[[], None] = forget, spent: list[float] = spent) -> None:
                began = time.perf_counter(), time.process_time()
                forget()
                spent[0] += time.perf_counter() - began[0]
                spent[1] += time.process_time() - began[1]

            run.processor.forget = timed  # type: ignore[method-assign]
            asked = 0
            for seen, prediction in enumerate(run, 1):
                if asked < seen * rate // 3600:
                    run.forget(ids=[prediction.id], guarantee="exact")
                    asked += 1
        seconds[rate], used[rate] = part * spent[0], part * spent[1]
        print(rate, asked, spent, flush=True)
    share = {rate: 100 * value / 3600 for rate, value in seconds.items()}
    return {"seconds": {"by the clock": seconds, "of processor time": used}, "share_of_hour_percent": share}


LARGE: dict[str, Callable[[argparse.Namespace, Path], Found]] = {
    "many_classes": many_classes,
    "wide": wide,
    "solves": solves,
    "between": between,
    "records": records,
    "many_ranks": many_ranks,
    "requests_an_hour": requests_an_hour,
}
