"""The final figures of a run, in one JSON object: summary.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from streamcl import __version__
from streamcl.evaluation.shift_matching import match_shifts
from streamcl.evaluation.throughput import Throughput, peak_memory_mb
from streamcl.events import StreamInfo
from streamcl.nn.device import Compute
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.shift_handler import ShiftHandler

SHIFT_TOLERANCE = 10
"""Batches after a true shift within which a detection counts as finding it."""


def summarise(
    *, name: str, learner: str, processor: StreamProcessor, batch_size: int, timing: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the final figures of a run; all that depends on the clock or the machine is under "timing"."""
    progress, shifts, classes = processor.progress, processor.shift_handler, processor.learner.classes
    info, parts = processor.source.info, processor.parts
    return {
        "run": name,
        "streamcl": __version__,
        "learner": learner,
        "source": info.name,
        "finished": progress.finished,
        "samples": progress.offset,
        "steps": progress.step,
        "classes": len(classes),
        "class_names": list(classes),
        "prequential": parts.scores.summary(),
        "holdout": parts.history.summary(),
        "shifts": _shifts(info, shifts, progress.offset, SHIFT_TOLERANCE * batch_size),
        "consolidations": list(shifts.consolidations),
        "consolidated": shifts.consolidated,
        "quarantined": processor.quarantine.quarantined,
        "skipped_steps": processor.guard.skipped,
        **({"held_out": len(parts.held_out)} if len(parts.held_out) else {}),
        **({"labels": found} if (found := processor.labels.summary()) else {}),
        **(
            {"predicted_only": processor.overload.predicted_only} if processor.overload.predicted_only else {}
        ),
        "timing": dict(timing),
    }


def _shifts(info: StreamInfo, handler: ShiftHandler, offset: int, tolerance: int) -> dict[str, Any]:
    """Return detections compared with the true shifts, from the oldest detection that the run still knows."""
    since = handler.shifts[0] if handler.segment > len(handler.shifts) else 0
    true = [shift for shift in info.shifts if since <= shift <= offset]
    score = match_shifts(true, handler.shifts, tolerance)
    return {**score.summary(), "total": handler.segment, "judged_from": since}


def timing(throughput: Throughput, compute: Compute, ranks: int = 1) -> dict[str, Any]:
    """Return speed, memory (of the first rank, where there are several), machine and software."""
    cuda = compute.device.type == "cuda"
    return {
        **environment(compute, ranks),
        "images_per_s": throughput.mean_images_per_s,
        "seconds": throughput.seconds,
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that features depend on."""
    found = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def environment(compute: Compute, ranks: int = 1) -> dict[str, Any]:
    """Return the machine and the software, which decide speed and, across machines, last bits."""
    cuda = compute.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else str(compute.device),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
