"""The device, the precision and the chunk size with which a model computes."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

from streamcl.errors import ConfigError
from streamcl.nn.fast_paths import cpu_multiplies_bf16

Precision: TypeAlias = Literal["32-true", "bf16-mixed"]

MAX_CHUNK_ROWS = 64
"""More images at a time gain little: on 2 cores with AMX a ViT-S reads 370/s by 16, 460 by 32, 510 by 64."""
MIN_PART_ROWS = 8
"""Rows up to which the last part of several is padded: parts of fewer rows take more time for each."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A device, a precision and a shape of products, on all of which a run's exact results depend.

    rows: images that go through a frozen model at a time. Products of other shapes take other kernels, which
        round differently: in bf16 on a processor with AMX, 8 images gave features 3e-3 relative from those of
        the same images among 64. So every product of a run has this one shape, whatever the batch.
    fitted: whether fewer images than `rows` go through in the least power of two that holds them. Only for a
        learner that answers requests: its features may differ in their last bits from those of the run.
    """

    device: torch.device
    precision: Precision
    rows: int = MAX_CHUNK_ROWS
    fitted: bool = False

    def chunk_sizes(self, count: int) -> list[int]:
        """Return the numbers of images in which `count` of them, one or more, go through a model.

        >>> run = Compute(torch.device("cpu"), "32-true", rows=16)
        >>> run.chunk_sizes(3), run.chunk_sizes(20)
        ([16], [16, 16])
        >>> run.for_requests().chunk_sizes(3), run.for_requests().chunk_sizes(69)
        ([4], [64, 8])
        """
        whole, rest = divmod(count, self.rows)
        last = 1 << (rest - 1).bit_length() if self.fitted else self.rows
        return [self.rows] * whole + ([min(last, self.rows)] if rest else [])

    def part_sizes(self, count: int) -> list[int]:
        """Return the same for rows of which some went no further, so that as few as possible are padded.

        >>> run = Compute(torch.device("cpu"), "32-true", rows=16)
        >>> run.part_sizes(3), run.for_requests().part_sizes(45), run.for_requests().part_sizes(3)
        ([16], [32, 8, 8], [4])
        """
        if not self.fitted:
            return self.chunk_sizes(count)
        sizes = [self.rows] * (count // self.rows)
        left = count % self.rows
        while left > MIN_PART_ROWS:
            sizes.append(1 << (left.bit_length() - 1))
            left -= sizes[-1]
        return sizes + self.chunk_sizes(left)

    def for_requests(self) -> Compute:
        """Return the same device and precision, with chunks that fit a request."""
        return replace(self, rows=MAX_CHUNK_ROWS, fitted=True)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the backbone and the adapters run."""
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resolve_compute(
    device: str = "auto", precision: str = "auto", batch_size: int = MAX_CHUNK_ROWS
) -> Compute:
    """Return the GPU where there is one, and bf16 where the processor multiplies it in hardware and faster.

    That is timed once a process; where both are about even the answer may differ from one start to the next,
    so a run stores its first one.

    Args:
        device: "auto", or a device of torch, as "cpu" or "cuda:1".
        precision: "auto", or a `Precision`.
        batch_size: images of a batch. On a CPU, which computes every row, `rows` is this number rounded up
            to 1, 2, 4, 8 or a multiple of 16, at most MAX_CHUNK_ROWS; on a GPU it is MAX_CHUNK_ROWS.

    Raise ConfigError where this machine does not have that CUDA device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        message = f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        raise ConfigError(message, hint="device: auto")
    if precision == "auto":
        precision = "bf16-mixed" if multiplies_bf16(chosen) and is_faster_in_bf16(chosen) else "32-true"
    rows = MAX_CHUNK_ROWS
    if chosen.type == "cpu":  # one image takes a tenth of the time of 16
        rounded = 1 << (batch_size - 1).bit_length() if batch_size < 16 else -(-batch_size // 16) * 16
        rows = min(MAX_CHUNK_ROWS, rounded)
    return Compute(chosen, "bf16-mixed" if precision == "bf16-mixed" else "32-true", rows)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_multiplies_bf16()


@functools.cache
def is_faster_in_bf16(device: torch.device) -> bool:
    """Return whether a product of a ViT-S takes less than 0.9 of its float32 time; this takes 0.1 s."""
    full, half = (min(_seconds(device, t) for _ in range(5)) for t in (torch.float32, torch.bfloat16))
    return half < 0.9 * full


def _seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of a product of 1,664 rows (64 images of 26 tokens) in a ViT-S, 384 -> 1536."""
    rows, weight = (torch.ones(shape, dtype=dtype, device=device) for shape in ((1664, 384), (1536, 384)))
    wait_for(device)
    began = time.perf_counter()
    F.linear(rows, weight)
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queue; return at once for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
