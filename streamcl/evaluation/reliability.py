"""Whether confidences mean what they say: the expected calibration error, over bins of equal width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BINS = 15
"""As in the literature; with few samples a bin holds few, and the error is overstated by their scatter."""


class ReliabilityBins:
    """Predictions counted by confidence: how many, the sum of their confidences, and how many were right."""

    def __init__(self, counts: Iterable[Sequence[float]] = ()) -> None:
        found = [[int(count), float(confidence), int(right)] for count, confidence, right in counts]
        self._bins: list[list[float]] = found or [[0, 0.0, 0] for _ in range(BINS)]

    def add(self, confidence: float, *, right: bool) -> None:
        """Count a prediction; one whose confidence is no number in [0, 1] is left out."""
        if not 0 <= confidence <= 1:
            return
        chosen = self._bins[min(int(confidence * BINS), BINS - 1)]
        chosen[0] += 1
        chosen[1] += confidence
        chosen[2] += right

    def __add__(self, other: ReliabilityBins) -> ReliabilityBins:
        """Return the counts of both."""
        pairs = zip(self._bins, other.counts, strict=True)
        return ReliabilityBins([[a + b for a, b in zip(one, two, strict=True)] for one, two in pairs])

    @property
    def counts(self) -> list[list[float]]:
        """Of each bin the number of predictions, the sum of their confidences, and how many were right."""
        return [list(each) for each in self._bins]

    @property
    def calibration_error(self) -> float | None:
        """Mean over predictions of |accuracy - mean confidence| of their bin, 0 to 1; None without any.

        It is the expected calibration error (ECE) of arXiv 1706.04599, equation 3.
        """
        total = sum(count for count, _, _ in self._bins)
        return sum(abs(right - confidence) for _, confidence, right in self._bins) / total if total else None
