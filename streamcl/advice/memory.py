"""An estimate of the memory that a run takes, from the sizes of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT64 = 8
FLOAT32 = 4
BF16 = 2

RUNNING_WIDTHS = 13
"""Widths d of what a block holds for a token while it runs: norm 1, qkv 3, attention 1, MLP 4 + 4."""
TRAINED_WIDTHS = 19
"""The same of what a trained block keeps of a token for its backward pass."""
RUN_PARTS = 190 * 2**20
"""Bytes of a run's other parts: its source, logs, evaluation and report, measured of configs/icons.yaml."""
SOLVING = 1.0
"""Copies of a sum beside itself: its factor while it is solved, or that of a checkpoint. The factor of the
last solve stays, in float32."""
TRIANGLE = 0.57
"""Share of a full matrix that a sum of outer products takes (see `streamcl.heads.gram`)."""


@dataclass(frozen=True, slots=True)
class RunSizes:
    """The sizes on which the memory of a run depends.

    libraries: bytes of the process before the model. parameters: of the frozen model. tokens: N of an image.
    width: d of a token. depth: blocks. rows: images that go through the model at a time, views included.
    pixels: of an image. features: D of each head. classes: C. trained_blocks: with adapters, 0 without.
    batch: images on which adapters are trained at a time. half: whether products are in bf16.
    """

    libraries: float
    parameters: int
    tokens: int
    width: int
    depth: int
    rows: int
    pixels: int
    features: Sequence[int]
    classes: int
    trained_blocks: int
    batch: int
    half: bool


def run_memory(sizes: RunSizes) -> float:
    """Return the bytes of a run at its peak."""
    item = BF16 if sizes.half else FLOAT32
    weights = sizes.parameters * (FLOAT32 + (BF16 if sizes.half else 0))
    token = sizes.tokens * sizes.width
    outputs = (sizes.depth + 1) * sizes.rows * token * FLOAT32  # of every block, as features are read of them
    reading = outputs + sizes.rows * (RUNNING_WIDTHS * token * item + 2 * 3 * sizes.pixels * FLOAT32)
    training = sizes.trained_blocks * sizes.batch * TRAINED_WIDTHS * token * item
    sums = sum(
        TRIANGLE * width**2 * (FLOAT64 * (1 + SOLVING) + FLOAT32) + 4 * FLOAT64 * width * sizes.classes
        for width in sizes.features
    )
    return sizes.libraries + RUN_PARTS + weights + max(reading, training) + sums
