"""Counts of right and wrong predictions: by label and prediction, and over a window."""

from __future__ import annotations

from collections import deque


class ConfusionMatrix:
    """How often each label was predicted as what.

    Attributes:
        rows: counts by label, then by prediction, each in the order in which they appeared.
        support: counts by label.
        samples: the sum of all counts.
        hits: the sum of the counts of right predictions.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str | None, int]] = {}
        self.support: dict[str, int] = {}
        self.samples = self.hits = 0

    def add(self, label: str, predicted: str | None, count: int = 1) -> None:
        """Count samples of a label that were predicted as `predicted`; None stands for no class."""
        row = self.rows.setdefault(label, {})
        row[predicted] = row.get(predicted, 0) + count
        self.support[label] = self.support.get(label, 0) + count
        self.samples += count
        self.hits += count * (predicted == label)


class HitWindow:
    """Which of the last `size` predictions were right, and how many."""

    def __init__(self, size: int) -> None:
        self._rights: deque[bool] = deque(maxlen=size)
        self._hits = 0

    def add(self, right: bool) -> None:
        """Count a prediction; beyond the size of the window the oldest one leaves."""
        if len(self._rights) == self._rights.maxlen:
            self._hits -= self._rights[0]
        self._rights.append(right)
        self._hits += right

    @property
    def share(self) -> float:
        """The share predicted right, in [0, 1]; 0 before the first prediction."""
        return self._hits / len(self._rights) if self._rights else 0.0

    @property
    def text(self) -> str:
        """The window as ones and zeros, the oldest prediction first."""
        return "".join("01"[right] for right in self._rights)


class Tally:
    """Right and wrong predictions of one domain."""

    def __init__(self, right: int = 0, wrong: int = 0) -> None:
        self.right, self.wrong = right, wrong

    def add(self, right: bool) -> None:
        """Count a prediction."""
        self.right += right
        self.wrong += not right

    @property
    def samples(self) -> int:
        """Predictions counted."""
        return self.right + self.wrong

    @property
    def share(self) -> float:
        """The share predicted right, in [0, 1]; 0 before the first prediction."""
        return self.right / self.samples if self.samples else 0.0
