"""Precision, recall and delay of shift detectors on streams of real images, all on the same recorded losses.

    python benchmarks/shift_streams.py record --out DIR [--learner ridge] [--packs office_caltech10,...]
    python benchmarks/shift_streams.py compare --out DIR

`record` runs one learner over abrupt, gradual, blurry, recurring, shuffled and short orders of the
development packs (STREAMCL_DEV_DATA, else ../shared/data) and writes its loss a batch once, with the true
shifts, the labels and what it shows of its features; what is there already is kept. `compare` shows the very
same to every detector. The plateau rule has its published thresholds (arXiv 2411.05663, CIFAR-100), River's
detectors their defaults. Of `relative_rise` the rule for losses was fitted on synthetic ones; which features
it looks at, and their threshold, was chosen among a dozen settings on these very packs, whose results were
close together; the test of labels was chosen on labels alone, of the first two packs.
A shift is found when the first alarm after it comes within ten batches; every other alarm is a false one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from streamcl.benchmark.feature_cache import CachedFeatures, CachedReader
from streamcl.config.load import config_from_dict
from streamcl.evaluation.shift_matching import match_shifts
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.learners.holdout_features import SampleKey
from streamcl.learners.ridge import RidgeLearner
from streamcl.protocols import FeatureShiftDetector, LabelShiftDetector, Learner, ShiftDetector
from streamcl.shift.detector import build_detector
from streamcl.storage import files
from streams.datasets.npz import npz
from streams.replay.collection import Collection, Indices
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import (
    Order,
    ScenarioPart,
    disjoint,
    domain_incremental,
    iid,
    segments,
    si_blurry,
)

WITHIN = 10  # batches
SHORT = 120, 330  # images of a short part
DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BATCH = {"cifar100_dev": 32, "emoji_dev": 32}  # 16 for the others, which are smaller
BACKBONE = {
    "name": "vit_small_patch14_dinov2",
    "weights": "fetch:vit-s-focus",
    "image_size": 70,
    "depth": 11,
}
DETECTORS: dict[str, Callable[[], ShiftDetector]] = {
    "relative_rise": partial(build_detector, "relative_rise"),
    "relative_rise, no labels": partial(build_detector, "relative_rise", label_threshold=None),
    "relative_rise, losses alone": partial(
        build_detector, "relative_rise", feature_threshold=None, label_threshold=None
    ),
    "paper": partial(build_detector, "plateau", mean_threshold=2.6, variance_threshold=0.03),
    "ADWIN": partial(build_detector, "river", name="ADWIN"),
    "PageHinkley": partial(build_detector, "river", name="PageHinkley"),
    "KSWIN": partial(build_detector, "river", name="KSWIN"),
}


@dataclass(frozen=True)
class Trace:
    """A learner's mean loss of each batch over one order of one pack, its labels and its true shifts."""

    pack: str
    order: str
    batch: int
    shifts: list[int]
    losses: list[float]
    labels: list[str] = field(default_factory=list)


def gradual(order: Order, width: int, seed: int = 0) -> Order:
    """The order with every shift drawn out: over `width` images the new part's share rises from 0 to 1.

    The shift's offset is where the first image of the new part can come.
    """
    rng = np.random.default_rng(seed)
    pieces = [piece.tolist() for piece in np.split(order.indices, list(order.shifts))]
    half = min(width // 2, *(len(piece) // 2 for piece in pieces))
    mixed, shifts = pieces[0][: len(pieces[0]) - half], []
    for old, new in pairwise(pieces):
        shifts.append(len(mixed))
        mixed += blend(old[len(old) - half :], new[:half], rng)
        mixed += new[half : len(new) - half]
    mixed += pieces[-1][len(pieces[-1]) - half :]
    return Order(np.array(mixed, np.int64), tuple(shifts), order.parts)


def blend(old: list[int], new: list[int], rng: np.random.Generator) -> list[int]:
    """Both lists in one, each in its order; the chance of taking from `new` rises along the way."""
    old, new, result = list(old), list(new), list[int]()
    total = len(old) + len(new)
    while old or new:
        take_new = not old or (bool(new) and rng.random() < (len(result) + 1) / total)
        result.append((new if take_new else old).pop(0))
    return result


def recurring(train: Collection, seed: int = 0) -> Order:
    """Two halves of the classes (or the domains, where there are some) in turn, three times each."""
    domains = train.domains.names if train.domains is not None and len(train.domains.names) > 2 else ()
    groups = [ScenarioPart(name, domains=(name,)) for name in domains] or [
        ScenarioPart("one", train.classes[: len(train.classes) // 2]),
        ScenarioPart("other", train.classes[len(train.classes) // 2 :]),
    ]
    visits = 2 if domains else 3
    pieces = [np.array_split(segments(train, [group], seed).indices, visits) for group in groups]
    turns: list[Indices] = [pieces[group][visit] for visit in range(visits) for group in range(len(groups))]
    shifts = np.cumsum([len(turn) for turn in turns])[:-1]
    return Order(np.concatenate(turns), tuple(int(shift) for shift in shifts))


def short(train: Collection, parts: int, seed: int) -> Order:
    """Disjoint groups of classes, one after the other, of 120 to 330 images each."""
    rng = np.random.default_rng(seed)
    whole = disjoint(train, parts, seed)
    pieces = [piece[: rng.integers(*SHORT, endpoint=True)] for piece in np.split(whole.indices, whole.shifts)]
    shifts = np.cumsum([len(piece) for piece in pieces])[:-1]
    return Order(np.concatenate(pieces), tuple(int(shift) for shift in shifts))


def orders(train: Collection, batch: int) -> Iterator[tuple[str, int, Order]]:
    """The orders that a pack is measured in, and their batches; Si-Blurry shifts where its parts begin."""
    by_domain = train.domains is not None and len(train.domains.names) > 2
    abrupt = domain_incremental(train, seed=0) if by_domain else disjoint(train, parts=5)
    yield "abrupt", batch, abrupt
    yield "gradual", batch, gradual(abrupt, width=6 * batch)
    yield "blurry", batch, si_blurry(train)
    yield "recurring", batch, recurring(train)
    yield "shuffled", batch, iid(train)
    for parts, seed in product((5, 10), range(3)):
        if parts * 2 <= len(train.classes):
            yield f"short {parts} {seed}", 64, short(train, parts, seed)


def record(out: Path, packs: list[str], name: str, limit: int | None) -> None:
    """Write the traces that are not there yet, one file each."""
    config = config_from_dict({"source": "digits", "backbone": BACKBONE, "learner": name})  # source: not used
    compute = build_compute(config)
    backbone = build_vit(config, compute)
    for pack in packs:
        path = DATA / f"{pack}.npz"
        if not path.exists():
            print(f"{pack}: skipped, {path} is not here")
            continue
        train, _ = npz(path)
        cache: dict[SampleKey, CachedFeatures] = {}
        for order_name, batch, order in orders(train, BATCH.get(pack, 16)):
            target = out / f"{pack}-{order_name.replace(' ', '-')}-{name}.json"
            if target.exists():
                continue
            learner = build_learner(config, backbone, compute)
            if isinstance(learner, RidgeLearner):
                learner.reader = CachedReader(learner.reader, cache)
            losses, features = losses_and_features(learner, ReplaySource(train, order, batch), limit)
            shifts = [shift for shift in order.shifts if shift < len(losses) * batch]
            labels = [train.classes[code] for code in train.labels[order.indices[: len(losses) * batch]]]
            trace = Trace(pack, order_name.split()[0], batch, shifts, losses, labels)
            if features:
                np.save(target.with_suffix(".npy"), np.concatenate(features))
            files.atomic_write(target, json.dumps(asdict(trace)).encode())
            print(f"{target.name}: {len(losses)} batches, {len(shifts)} shifts", flush=True)


def losses_and_features(
    learner: Learner, source: ReplaySource, limit: int | None
) -> tuple[list[float], list[npt.NDArray[np.float16]]]:
    """The mean data loss of each batch, in nats, and its features, of a learner that never consolidates."""
    losses: list[float] = []
    features: list[npt.NDArray[np.float16]] = []
    for event in source:
        result = learner.learn(event)
        losses += [fmean(result.losses)] if result.learned and result.losses else []
        features += [] if result.features is None else [result.features.astype(np.float16)]
        if limit is not None and event.end >= limit:
            break
    return losses, features


def alarms(
    detector: ShiftDetector, trace: Trace, features: npt.NDArray[np.float16] | None = None
) -> list[int]:
    """The ends of the batches at which the detector reports a shift."""
    found = []
    for number, loss in enumerate(trace.losses, 1):
        own = slice((number - 1) * trace.batch, number * trace.batch)
        if features is not None and isinstance(detector, FeatureShiftDetector):
            detector.look(features[own])
        if isinstance(detector, LabelShiftDetector):
            detector.look_at_labels(trace.labels[own])
        detector.update(loss)
        found += [number * trace.batch] if detector.shift else []
    return found


def row(traces: list[tuple[Trace, npt.NDArray[np.float16] | None]], make: Callable[[], ShiftDetector]) -> str:
    """precision | recall | mean delay in samples | false alarms per 10,000 samples."""
    true = found = false = samples = 0
    delays: list[float] = []
    for trace, features in traces:
        score = match_shifts(trace.shifts, alarms(make(), trace, features), WITHIN * trace.batch)
        true, found, false = true + len(trace.shifts), found + score.found, false + score.false_alarms
        samples += len(trace.losses) * trace.batch
        delays += score.delays
    precision = f"{found / (found + false):.2f}" if found + false else "-"
    recall = f"{found / true:.2f}" if true else "-"
    delay = f"{fmean(delays):.0f}" if delays else "-"
    return f"{precision} | {recall} | {delay} | {1e4 * false / samples:.1f}"


def compare(out: Path) -> None:
    """Print a table a kind of order: detectors x figures."""
    traces = [
        (Trace(**json.loads(path.read_text())), np.load(seen) if seen.exists() else None)
        for path in sorted(out.glob("*.json"))
        for seen in (path.with_suffix(".npy"),)
    ]
    if not traces:
        print(f"{out} holds no traces: run `record` first")
        return
    for order in [*dict.fromkeys(trace.order for trace, _ in traces), "all"]:
        own = [(trace, features) for trace, features in traces if order in {trace.order, "all"}]
        shifts, packs = sum(len(trace.shifts) for trace, _ in own), len({trace.pack for trace, _ in own})
        print(f"\n{order}: {shifts} shifts in {sum(len(t.losses) for t, _ in own)} batches of {packs} packs")
        print("| detector | precision | recall | delay, samples | false alarms per 10,000 |")
        print("|---|---:|---:|---:|---:|")
        for name, make in DETECTORS.items():
            print(f"| {name} | {row(own, make)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--learner", default="ridge", help="whose losses are recorded")
    parser.add_argument("--packs", default="cifar100_dev,emoji_dev,grocery81,office_caltech10,fruits65_video")
    parser.add_argument("--limit", type=int, help="samples a stream at most")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "record":
        record(args.out, args.packs.split(","), args.learner, args.limit)
    else:
        compare(args.out)


if __name__ == "__main__":
    main()
