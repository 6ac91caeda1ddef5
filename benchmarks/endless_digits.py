"""A stream without end for benchmarks/serve.py: the images of a file beside this one, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt


def digits() -> Iterator[tuple[npt.NDArray[np.uint8], str]]:
    """Yield images, uint8 [H, W, 3], and their labels."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, labels = file["images"], file["labels"]
    for number in count():
        at = number % len(images)
        yield images[at], str(labels[at])
