"""Prints recall, false alarms and delay of the test of labels, on labels alone.

    python benchmarks/label_shifts.py [--batch 64] [--seeds 6]

Labels are those of the development packs (STREAMCL_DEV_DATA, else ../shared/data), in parts of 120 to 330
samples with new classes each, or synthetic. The constants of the test were chosen on CIFAR-100 and emoji.
A shift is found when the first alarm after it comes within ten batches; every other alarm is a false one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.evaluation.shift_matching import match_shifts
from streamcl.shift.label_change import LabelChange

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
PACKS = ("cifar100_dev", "emoji_dev", "grocery81", "office_caltech10", "fruits65_video")
SHORT = 120, 330  # samples of a part
WITHIN = 10  # batches
INTERVAL = 10_000  # samples: the default of `shift.label_threshold`

Labels: TypeAlias = npt.NDArray[np.int64]
Stream: TypeAlias = tuple[Labels, list[int]]
"""Labels and the offsets of their true shifts."""
Make: TypeAlias = Callable[[np.random.Generator], Stream]


def pack_labels(pack: str) -> Labels:
    """The labels of a pack's training images, in its own order."""
    with np.load(DATA / f"{pack}.npz") as arrays:
        labels: Labels = arrays["y"][arrays["split"] == 0].astype(np.int64)
    return labels


def short_parts(labels: Labels, classes: int, rng: np.random.Generator, wrong: float = 0.0) -> Stream:
    """Parts of so many classes each, all new, and each shuffled; those of under 108 samples are left out."""
    order = rng.permutation(np.unique(labels))
    groups = [order[start : start + classes] for start in range(0, len(order) - classes + 1, classes)]
    parts = [rng.permutation(labels[np.isin(labels, group)]) for group in groups]
    parts = [part[: rng.integers(*SHORT, endpoint=True)] for part in parts]
    parts = [part for part in parts if len(part) >= 0.9 * SHORT[0]]
    if len(parts) < 2:
        return np.zeros(0, np.int64), []
    stream = np.concatenate(parts)
    wrongly = rng.random(len(stream)) < wrong
    stream[wrongly] = rng.choice(order, int(wrongly.sum()))
    return stream, [int(end) for end in np.cumsum([len(part) for part in parts])[:-1]]


def zipf(classes: int, power: float, rng: np.random.Generator, length: int = 10_000) -> Stream:
    """Independent labels, the k-th class with a frequency of k^-power."""
    weights = np.arange(1, classes + 1) ** -power
    return rng.choice(classes, length, p=weights / weights.sum()), []


def pitman_yor(strength: float, discount: float, rng: np.random.Generator, length: int = 4000) -> Stream:
    """Exchangeable labels of which new ones never end, as words in a text."""
    counts: list[float] = []
    labels = []
    for _ in range(length):
        weights = np.array([strength + discount * len(counts), *(count - discount for count in counts)])
        label = int(rng.choice(len(weights), p=weights / weights.sum()))  # 0 is a new one
        counts += [] if label else [0.0]
        labels.append(label - 1 if label else len(counts) - 1)
        counts[labels[-1]] += 1
    return np.array(labels), []


def runs(mean: int, rng: np.random.Generator, others: float = 0.0, length: int = 8000) -> Stream:
    """Runs of one of 20 classes, as in a video; a share of the labels are others."""
    pieces = [np.full(rng.geometric(1 / mean), rng.integers(20)) for _ in range(2 * length // mean)]
    labels = np.concatenate(pieces)[:length]
    other = rng.random(len(labels)) < others
    labels[other] = rng.integers(20, size=int(other.sum()))
    return labels, []


def two_cameras(rng: np.random.Generator) -> Stream:
    """Two such videos, of which every second label is one."""
    return np.stack([runs(20, rng)[0][:4000], runs(20, rng)[0][:4000]], axis=1).ravel(), []


def drifting(rng: np.random.Generator, length: int = 8000) -> Stream:
    """Frequencies of 20 classes that change slowly into others."""
    first, last = rng.normal(size=(2, 20))
    time = np.linspace(0, 1, length)[:, None]
    weights = np.exp((1 - time) * first + time * last)
    below = (weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1)
    return (below > rng.random((length, 1))).argmax(axis=1), []


def growing(rng: np.random.Generator, length: int = 8000) -> Stream:
    """Five classes, and one more every 200 samples."""
    return np.array([rng.integers(5 + offset // 200) for offset in range(length)]), []


def alarms(labels: Labels, batch: int) -> list[int]:
    """The ends of the batches at which the test reports a change."""
    test, found = LabelChange(INTERVAL), []
    bounds = [*range(0, len(labels), batch), len(labels)]
    for start, end in pairwise(bounds):
        test.add([str(label) for label in labels[start:end]])
        found += [end] if test.take() else []
    return found


def print_row(name: str, streams: Sequence[Stream], batch: int) -> None:
    """Print the name, shifts, recall, mean delay and false alarms per 10,000 samples of some streams."""
    streams = [stream for stream in streams if len(stream[0])]
    if not streams:
        return
    scores = [match_shifts(true, alarms(labels, batch), WITHIN * batch) for labels, true in streams]
    true = sum(len(shifts) for _, shifts in streams)
    delays = [delay for score in scores for delay in score.delays]
    samples = sum(len(labels) for labels, _ in streams)
    recall = f"{len(delays) / true:.3f}" if true else "-"
    delay = f"{fmean(delays):.0f}" if delays else "-"
    false = 1e4 * sum(score.false_alarms for score in scores) / samples
    print(f"| {name} | {samples:,} | {true} | {recall} | {delay} | {false:.1f} |", flush=True)


def print_table(title: str, rows: dict[str, Make], batch: int, seeds: int) -> None:
    """Print a row for each kind of stream, made with so many seeds."""
    print(f"\n{title}\n")
    print("| labels | samples | shifts | recall | delay, samples | false alarms per 10,000 |")
    print("|---|---:|---:|---:|---:|---:|")
    for number, (name, make) in enumerate(rows.items()):
        print_row(name, [make(np.random.default_rng([number, seed])) for seed in range(seeds)], batch)


def shuffled(labels: Labels, rng: np.random.Generator) -> Stream:
    """The labels in random order."""
    return rng.permutation(labels), []


def in_order(labels: Labels, _: np.random.Generator) -> Stream:
    """The labels sorted."""
    return np.sort(labels), []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="samples of a batch")
    parser.add_argument("--seeds", type=int, default=6, help="streams of each kind")
    args = parser.parse_args()
    packs = {pack: pack_labels(pack) for pack in PACKS if (DATA / f"{pack}.npz").exists()}
    for title, rows in tables(packs).items():
        print_table(title, rows, args.batch, args.seeds)


def tables(packs: dict[str, Labels]) -> dict[str, dict[str, Make]]:
    """The kinds of streams of each table."""
    numbers = (1, 2, 3, 5, 10, 20)
    noise = product((2, 10), (0.2, 0.4))
    frequencies = ((2, 0.0), (10, 1.0), (100, 1.0), (1000, 0.0), (1000, 1.0), (10_000, 1.2))
    return {
        "Parts of 120 to 330 samples": {
            f"{pack}, classes a part: {number}": partial(short_parts, labels, number)
            for (pack, labels), number in product(packs.items(), numbers)
        },
        "The same with labels drawn at random": {
            f"{pack}, classes a part: {number}, wrong: {wrong:.0%}": partial(
                short_parts, labels, number, wrong=wrong
            )
            for (pack, labels), (number, wrong) in product(packs.items(), noise)
        },
        "Random order: no shift": {
            **{f"{pack}, shuffled": partial(shuffled, labels) for pack, labels in packs.items()},
            **{f"{n:,} classes, frequency k^-{power:g}": partial(zipf, n, power) for n, power in frequencies},
            **{
                f"Pitman-Yor({n}, {d})": partial(pitman_yor, n, d)
                for n, d in ((10, 0.0), (10, 0.5), (100, 0.7))
            },
        },
        "Other orders without a true shift": {
            "runs of 3": partial(runs, 3),
            "runs of 20": partial(runs, 20),
            "runs of 20, a tenth of other classes": partial(runs, 20, others=0.1),
            "two cameras with runs of 20, in turn": two_cameras,
            "frequencies change slowly": drifting,
            "one class more every 200": growing,
            **{f"{pack}, sorted": partial(in_order, labels) for pack, labels in packs.items()},
        },
    }


if __name__ == "__main__":
    main()
