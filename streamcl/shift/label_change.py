"""Whether the labels of a stream have changed: an exact test of single samples, not of batch means."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State
from streamcl.shift.novelty import Values

Codes: TypeAlias = npt.NDArray[np.int64]

# The constants were chosen on labels of CIFAR-100 and emoji in parts of 120 to 330, and measured on others.
_WINDOWS = (8, 12, 16, 24, 32, 48, 64, 96)  # newest labels that are held against those before
_REFERENCE = 256  # labels before them, at most
_MIN_REFERENCE = 16
_ODDS = (8.0, 64.0)  # how much likelier the newest labels have a new class than chance has it
_POWERS = (0.1, 0.25)
_MIN_PRIOR = 0.05  # of a class being new, however often it comes
_MIN_RISE = 0.35  # share of the newest labels that are more than chance explains
_MIN_SAMPLES = 64  # between two shifts
_MAX_LABELS = _REFERENCE + max(_WINDOWS)


class LabelChange:
    """Tests whether the newest labels of a segment come from other classes than those before them.

    In random order each of the n labels of a class lies among the newest w of N with the chance p = w / N,
    and k of them do. Then 1 - a + a t^k / (1 + p (t - 1))^n has a mean of at most 1 for every t > 1 and every
    a between 0 and 1 that does not depend on the order (Hoeffding, 1963: drawing without replacement varies
    less than drawing with it), and so has the product over classes, since counts of classes are negatively
    associated (Joag-Dev and Proschan, 1983): it is an e-value. Here a is p^(b n), or 0.05 if that is more.
    The mean over windows w, odds t and powers b is an e-value too. A change is reported where it exceeds
    `interval` divided by the samples since the last test: by Markov's inequality no more often, on average,
    than once in `interval` samples while the order of the labels is random, whatever the classes and their
    frequencies. A window counts only where a third of its labels are more than chance explains, since a
    single class that joins many others is no shift.

    A label that repeats the one before it is not counted, so runs of one class, as in a video, are one
    observation each.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._labels: Codes = np.zeros(0, np.int64)  # of the segment, no two neighbours the same
        self._untested = 0  # samples
        self._since = 0  # samples since the segment began

    def add(self, labels: Sequence[str]) -> None:
        """Take the labels of the next samples, in their order."""
        joined = np.concatenate([self._labels, np.array([_code(label) for label in labels], np.int64)])
        changes = np.flatnonzero(np.diff(joined, prepend=joined[:1] + 1))
        self._labels = joined[changes][-_MAX_LABELS:]
        self._untested += len(labels)
        self._since += len(labels)

    def take(self) -> str | None:
        """Return why the labels show a change, or None; after a change a segment of the newest begins."""
        samples, self._untested = self._untested, 0
        if not samples or self._since < _MIN_SAMPLES:
            return None
        evidence = self._evidence()  # [windows, odds and powers]
        highest = float(evidence.max())
        if highest == -math.inf:
            return None
        mean = highest + math.log(float(np.exp(evidence - highest).mean()))
        if mean <= math.log(self._interval / samples):
            return None
        return self._begin(_WINDOWS[int(np.argmax(evidence.max(axis=1)))], mean)

    def drop(self) -> None:
        """Begin anew: no label is left."""
        self._labels, self._untested, self._since = np.zeros(0, np.int64), 0, 0

    def _begin(self, window: int, evidence: float) -> str:
        """Begin a segment with the newest labels, and return the reason."""
        older, newer = self._labels[:-window][-_REFERENCE:], self._labels[-window:]
        new = int(np.isin(newer, older, invert=True).sum())
        self._labels, self._since = newer.copy(), 0
        return (
            f"labels: {new} of the newest {window} are of classes that none of the {len(older)} before has; "
            f"evidence against a random order 10^{evidence / math.log(10):.1f}"
        )

    def _evidence(self) -> Values:
        """Return the logarithms of the e-values; minus infinity for windows that show too little."""
        evidence = np.full((len(_WINDOWS), len(_ODDS) * len(_POWERS)), -math.inf)
        for row, window in enumerate(_WINDOWS):
            if len(self._labels) - window < _MIN_REFERENCE:
                break
            labels = self._labels[-window - _REFERENCE :]
            if _rise(labels, window) >= _MIN_RISE:
                evidence[row] = log_e_values(labels, window)
        return evidence

    def state_dict(self) -> State:
        """Return hashes of the segment's newest labels, and how many samples have passed."""
        return {"labels": self._labels.copy(), "untested": self._untested, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the one that returned `state`."""
        self._labels = np.array(state["labels"], np.int64)
        self._untested, self._since = int(state["untested"]), int(state["since"])


def log_e_values(labels: Codes, window: int) -> list[float]:
    """Return the logarithms of e-values, one for each pair of odds and power.

    Args:
        labels: [N], no two neighbours the same.
        window: how many of the newest are held against the others.
    """
    counts, newest = _counts(labels, window)
    chance = window / len(labels)
    found = []
    for odds in _ODDS:
        ratio = np.exp(newest * math.log(odds) - counts * math.log1p(chance * (odds - 1)))  # [classes]
        for power in _POWERS:
            prior = np.maximum(chance ** (power * counts), _MIN_PRIOR)
            found.append(float(np.log1p(prior * (ratio - 1)).sum()))
    return found


def _rise(labels: Codes, window: int) -> float:
    """Return the share of the newest labels by which the classes that are mostly new exceed chance."""
    counts, newest = _counts(labels, window)
    chance = window / len(labels)
    risen = newest > counts * (1 + chance) / 2
    return float((newest - chance * counts)[risen].sum()) / window


def _counts(labels: Codes, window: int) -> tuple[Codes, Codes]:
    """Return the labels of each class, and how many of them are among the newest."""
    _, codes = np.unique(labels, return_inverse=True)
    counts = np.bincount(codes)
    return counts, np.bincount(codes[-window:], minlength=len(counts))


def _code(label: str) -> int:
    """Return a number of 63 bits that stands for the label."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "big") >> 1
