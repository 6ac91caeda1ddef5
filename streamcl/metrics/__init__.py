"""How well a run goes: test-then-train and held-out accuracy, shifts found, speed and memory."""

from streamcl.metrics.holdout import HoldoutHistory
from streamcl.metrics.prequential import Prequential
from streamcl.metrics.shifts import ShiftScore, match_shifts
from streamcl.metrics.throughput import Throughput, memory_mb, peak_memory_mb

__all__ = [
    "HoldoutHistory",
    "Prequential",
    "ShiftScore",
    "Throughput",
    "match_shifts",
    "memory_mb",
    "peak_memory_mb",
]
