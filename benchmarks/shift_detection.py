"""Prints recall, false alarms and delay of every shift detector on synthetic loss streams with known shifts.

    python benchmarks/shift_detection.py [--trials N] [--half tuning|report] [--detectors relative_rise,ADWIN]

A shift is found when the first alarm after it comes within ten batches; every other alarm is a false one.
As in a run, the losses of batches under 16 samples are gathered until there are so many, and "batches" are
then those. The constants of `relative_rise` were chosen on the tuning half only, the 16 on
"batch of 8" as well.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from streamcl.protocols import ShiftDetector
from streamcl.shift.detector import build_detector

WITHIN = 10  # batches
MIN_SAMPLES = 16  # samples: the default of `shift.min_samples`

Losses = npt.NDArray[np.float64]


@dataclass
class Stream:
    losses: Losses
    shifts: list[int]
    batch: int = 64


@dataclass
class Tally:
    """The detections of one detector over some streams."""

    shifts: int = 0
    found: int = 0
    alarms: int = 0
    samples: int = 0
    plateaus: int = 0
    delays: list[int] = field(default_factory=list)

    def add(self, stream: Stream, alarms: list[int], plateaus: int) -> None:
        for start, end in pairwise([*stream.shifts, len(stream.losses)]):
            first = next((a for a in alarms if start <= a < min(end, start + WITHIN)), None)
            if first is not None:
                self.found += 1
                self.delays.append(first - start + 1)
        self.shifts += len(stream.shifts)
        self.alarms += len(alarms)
        self.samples += len(stream.losses) * stream.batch
        self.plateaus += plateaus

    @property
    def row(self) -> tuple[str, ...]:
        recall = f"{self.found / self.shifts:.2f}" if self.shifts else "-"
        false = 1e4 * (self.alarms - self.found) / self.samples
        delay = f"{np.mean(self.delays):.1f}" if self.delays else "-"
        return recall, f"{false:.2f}", delay


def falling(
    rng: np.random.Generator,
    segments: int = 5,
    length: tuple[int, int] = (30, 100),
    jump: tuple[float, float] = (1.3, 5),
    noise: tuple[float, float] = (0.1, 0.2),
    start: float = 3.0,
    decay: tuple[float, float] = (4, 25),
) -> Stream:
    """Segments that fall exponentially to a floor; each begins at a multiple of where the last one ended."""
    level = start
    parts: list[Losses] = []
    shifts: list[int] = []
    for i in range(segments):
        n = int(rng.integers(*length))
        rise, tau = np.exp(rng.uniform(*np.log(jump))), rng.uniform(*decay)
        floor = min(rng.uniform(0.9, 1.2) / rise, 0.9)  # falls by about what the next jump brings back
        part: Losses = level * (floor + (1 - floor) * np.exp(-np.arange(n) / tau))
        shifts += [sum(len(each) for each in parts)] if i else []
        parts.append(part)
        level = part[-1] * rise
    return Stream(noisy(rng, np.concatenate(parts), rng.uniform(*noise)), shifts)


def noisy(rng: np.random.Generator, clean: Losses, noise: float) -> Losses:
    return clean * np.exp(noise * rng.standard_normal(len(clean)))


def level(rng: np.random.Generator, n: int = 400, noise: float = 0.2) -> Stream:
    return Stream(noisy(rng, np.full(n, rng.uniform(0.1, 5)), noise), [])


def spiked(rng: np.random.Generator, stream: Stream, share: float = 0.02) -> Stream:
    """Single bad batches, three to a million times the loss, never two in a row."""
    bad = np.flatnonzero(rng.random(len(stream.losses)) < share)
    bad = bad[np.diff(bad, prepend=-9) > 2]
    stream.losses[bad] *= 10 ** rng.uniform(0.5, 6, len(bad))
    return stream


def near_zero(rng: np.random.Generator) -> Stream:
    """0.01 nats with a few hard samples a batch; half of the streams then learn something new."""
    losses = 0.01 + rng.gamma(0.3, 0.02, 300)
    if rng.random() < 0.5:
        return Stream(losses, [])
    losses[200:] += 0.3 * np.exp(-np.arange(100) / 15) * rng.gamma(20, 1 / 20, 100)
    return Stream(losses, [200])


def per_sample(rng: np.random.Generator, batch: int) -> Stream:
    """Batch means of skewed sample losses (gamma, shape 0.5): noise grows as batches shrink."""
    stream = falling(rng, 4, (60, 150), (2, 5), (0, 0.02))
    stream.losses *= rng.gamma(0.5, 2.0, (len(stream.losses), batch)).mean(axis=1)
    stream.batch = batch
    return stream


def one_by_one(rng: np.random.Generator) -> Stream:
    """Samples that come singly: segments of 1,000 to 2,400."""
    stream = falling(rng, 4, (60, 150), (2, 5), (0, 0.02))
    stream.losses = np.repeat(stream.losses, MIN_SAMPLES)
    stream.losses *= rng.gamma(0.5, 2.0, len(stream.losses))
    stream.shifts = [MIN_SAMPLES * shift for shift in stream.shifts]
    stream.batch = 1
    return stream


def in_groups(stream: Stream) -> Stream:
    """The stream as a detector is given it."""
    group = -(-MIN_SAMPLES // stream.batch)
    whole = len(stream.losses) // group * group
    losses = stream.losses[:whole].reshape(-1, group).mean(axis=1)
    return Stream(losses, [shift // group for shift in stream.shifts], stream.batch * group)


def rising(rng: np.random.Generator) -> Stream:
    n = 400
    return Stream(noisy(rng, 1 + rng.uniform(0.2, 0.5) * np.arange(n) / n, rng.uniform(0.05, 0.2)), [])


def power_law(rng: np.random.Generator) -> Stream:
    clean: Losses = 3 * np.arange(1, 601, dtype=np.float64) ** -rng.uniform(0.2, 0.8)
    return Stream(noisy(rng, clean, rng.uniform(0.1, 0.3)), [])


def heavy_tailed(rng: np.random.Generator) -> Stream:
    stream = falling(rng, jump=(1.6, 5), noise=(0, 0.01))
    stream.losses *= np.exp(rng.uniform(0.08, 0.15) * rng.standard_t(3, len(stream.losses)))
    return stream


def autocorrelated(rng: np.random.Generator) -> Stream:
    """Video: neighbouring batches resemble each other (AR(1), 0.5)."""
    stream = falling(rng, jump=(1.6, 5), noise=(0, 0.01))
    wander, noise = 0.0, rng.uniform(0.08, 0.15)
    for i in range(len(stream.losses)):
        wander = 0.5 * wander + noise * rng.standard_normal()
        stream.losses[i] *= np.exp(wander)
    return stream


def gradual(rng: np.random.Generator) -> Stream:
    """The new distribution takes four to eight batches to replace the old one."""
    stream = falling(rng, jump=(2, 5), length=(40, 100))
    clean = stream.losses.copy()
    for shift in stream.shifts:
        steps = int(rng.integers(4, 9))
        weights = np.arange(1, steps + 1) / steps
        stream.losses[shift : shift + steps] = (
            weights * clean[shift : shift + steps] + (1 - weights) * clean[shift - steps : shift]
        )
    return stream


def recurring(rng: np.random.Generator) -> Stream:
    """Two domains in turn; the second visit hurts less than the first."""
    parts = []
    for i in range(6):
        n, high = int(rng.integers(20, 60)), 0.5 + 2.0 * 0.75**i
        parts.append(0.4 + (high - 0.4) * np.exp(-np.arange(n) / 6))
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return Stream(noisy(rng, np.concatenate(parts), rng.uniform(0.1, 0.2)), ends.tolist())


Family = Callable[[np.random.Generator], Stream]
TUNING: dict[str, Family] = {
    "abrupt x1.3-5, noise 10-20 %": falling,
    "short segments (10-25)": lambda r: falling(r, 12, (10, 25), (1.5, 4), decay=(3, 8)),
    "bad batches": lambda r: spiked(r, falling(r, jump=(1.6, 5))),
    "level, noise 20 %": level,
    "near zero": near_zero,
    "batch of 1": one_by_one,
    "slow rise": rising,
}
REPORT: dict[str, Family] = {
    "abrupt x1.5-5, noise 20-30 %": lambda r: falling(r, jump=(1.5, 5), noise=(0.2, 0.3)),
    "masked loss x1.3-1.6, noise 10 %": lambda r: falling(r, 6, (20, 60), (1.3, 1.6), (0.08, 0.12)),
    "level, noise 30 %, bad batches": lambda r: spiked(r, level(r, noise=0.3)),
    "power-law fall": power_law,
    "batch of 8": lambda r: per_sample(r, 8),
    "batch of 256": lambda r: per_sample(r, 256),
    "heavy tails": heavy_tailed,
    "autocorrelated": autocorrelated,
    "gradual, 4-8 batches": gradual,
    "recurring": recurring,
}
DETECTORS: dict[str, Callable[[], ShiftDetector]] = {
    "relative_rise": lambda: build_detector("relative_rise"),
    "paper": lambda: build_detector("plateau", mean_threshold=2.6, variance_threshold=0.03),
    "ADWIN": lambda: build_detector("river", name="ADWIN"),
    "PageHinkley": lambda: build_detector("river", name="PageHinkley"),
    "KSWIN": lambda: build_detector("river", name="KSWIN"),
}


def detections(detector: ShiftDetector, losses: Losses) -> tuple[list[int], int]:
    """The indices at which the detector reports a shift, and how many plateaus it reports."""
    alarms, plateaus = [], 0
    for i, loss in enumerate(losses):
        detector.update(float(loss))
        alarms += [i] if detector.shift else []
        plateaus += detector.plateau is not None
    return alarms, plateaus


def measure(make: Callable[[], ShiftDetector], name: str, family: Family, trials: int) -> Tally:
    tally = Tally()
    for trial in range(trials):
        stream = in_groups(family(np.random.default_rng([zlib.crc32(name.encode()), trial])))
        assert all(a < b for a, b in pairwise(stream.shifts))
        tally.add(stream, *detections(make(), stream.losses))
    return tally


def total(tallies: list[Tally]) -> Tally:
    """All families together."""
    return Tally(
        sum(t.shifts for t in tallies),
        sum(t.found for t in tallies),
        sum(t.alarms for t in tallies),
        sum(t.samples for t in tallies),
        sum(t.plateaus for t in tallies),
        [delay for t in tallies for delay in t.delays],
    )


def table(title: str, families: dict[str, Family], detectors: list[str], trials: int) -> None:
    print(
        f"\n{title}: recall within {WITHIN} batches | false alarms per 10,000 samples | mean delay, batches"
    )
    print(f"{'':34}" + "".join(f"{name:>20}" for name in detectors))
    tallies: dict[str, list[Tally]] = {name: [] for name in detectors}
    for family, make_stream in families.items():
        cells = []
        for name in detectors:
            tallies[name].append(measure(DETECTORS[name], family, make_stream, trials))
            cells.append(" | ".join(tallies[name][-1].row))
        print(f"{family:34}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'all':34}" + "".join(f"{' | '.join(total(tallies[name]).row):>20}" for name in detectors))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="streams per family")
    parser.add_argument("--half", choices=["tuning", "report"], help="one half of the families only")
    parser.add_argument("--detectors", default=",".join(DETECTORS))
    args = parser.parse_args()
    chosen = args.detectors.split(",")
    if args.half != "report":
        table("families the constants were chosen on", TUNING, chosen, args.trials)
    if args.half != "tuning":
        table("families kept for the report", REPORT, chosen, args.trials)


if __name__ == "__main__":
    main()
