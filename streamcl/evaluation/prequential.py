"""Test-then-train accuracy over the stream, a window, classes and domains, kept by River's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from river import metrics as river_metrics
from river.utils import Rolling

from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.events import PredictionRecord
from streamcl.protocols import BatchRecord, State

OTHER_DOMAINS = "(other domains)"
FORGOTTEN = "(forgotten)"
"""Stands for the name of a forgotten class where its counts stay."""


class Prequential:
    """Accuracy of predictions made before their samples were learned (doi 10.1007/s10994-012-5320-9).

    A sample without a label is not counted; a prediction of None is wrong. `window` is in labelled samples.
    Memory: one row a class, at most `max_pairs` distinct mistakes (later ones are counted under None) and
    `max_domains` domains (later ones are counted together).
    """

    def __init__(self, window: int = 1000, *, max_domains: int = 64, max_pairs: int = 100_000) -> None:
        if window < 1:
            raise ValueError(f"the window is {window} samples; it must hold at least 1")
        self._window_size, self._max_domains, self._max_pairs = window, max_domains, max_pairs
        self._clear()

    def _clear(self) -> None:
        self._confusion = river_metrics.ConfusionMatrix()
        self._pairs = 0
        # Counts only "right or wrong": its matrix has two cells however many classes there are.
        self._window = Rolling(river_metrics.Accuracy, self._window_size)
        self._domains: dict[str, Any] = {}
        self._reliability = ReliabilityBins()

    def after_batch(self, record: BatchRecord) -> None:
        """Count the predictions of a batch, each sample once: not those of corrected samples."""
        counted = [
            (prediction, sample.domain)
            for prediction, sample in zip(record.predictions, record.batch.samples, strict=True)
            if prediction.offset not in record.corrected
        ]
        self.update([prediction for prediction, _ in counted], [domain for _, domain in counted])

    def update(
        self, predictions: Sequence[PredictionRecord], domains: Sequence[str | None] | None = None
    ) -> None:
        """Count the labelled predictions; `domains`, where given, names each one's domain, in order."""
        named = domains if domains is not None else [None] * len(predictions)
        for prediction, domain in zip(predictions, named, strict=True):
            if prediction.label is None:
                continue
            right = prediction.predicted == prediction.label
            self._count(prediction.label, prediction.predicted)
            self._window.update(True, right)
            self._reliability.add(prediction.confidence, right=right)
            if domain is not None:
                self._domain(domain).update(True, right)

    def _count(self, label: str, predicted: str | None) -> None:
        row = self._confusion.data[label]
        if predicted not in row and predicted != label:
            if self._pairs >= self._max_pairs:
                predicted = None
            else:
                self._pairs += 1
        self._confusion.update(label, predicted)

    def _domain(self, name: str) -> Any:
        if name not in self._domains and len(self._domains) >= self._max_domains:
            name = OTHER_DOMAINS
        return self._domains.setdefault(name, river_metrics.Accuracy())

    @property
    def samples(self) -> int:
        """Labelled samples counted."""
        return int(self._confusion.total_weight)

    @property
    def accuracy(self) -> float | None:
        """The share predicted right since the beginning; None before the first labelled sample."""
        return self._confusion.total_true_positives / self.samples if self.samples else None

    @property
    def window_accuracy(self) -> float | None:
        """The share predicted right among the last `window` labelled samples."""
        return float(self._window.get()) if self.samples else None

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error, in [0, 1]; None before the first labelled sample."""
        return self._reliability.calibration_error

    @property
    def per_class(self) -> dict[str, float]:
        """The share of each class's samples predicted right, in the order in which the classes appeared."""
        rows = self._confusion.data
        return {label: rows[label].get(label, 0.0) / count for label, count in self.support.items()}

    @property
    def support(self) -> dict[str, int]:
        """Labelled samples of each class."""
        return {label: int(count) for label, count in self._confusion.sum_row.items()}

    @property
    def per_domain(self) -> dict[str, float]:
        """The share of each domain's samples predicted right, in the order in which the domains appeared."""
        return {name: float(accuracy.get()) for name, accuracy in self._domains.items()}

    def summary(self) -> dict[str, Any]:
        """Return the "prequential" part of summary.json."""
        return {
            "accuracy": self.accuracy,
            "window_accuracy": self.window_accuracy,
            "window": self._window_size,
            "samples": self.samples,
            "calibration_error": self.calibration_error,
            "per_class": self.per_class,
            "support": self.support,
            "per_domain": self.per_domain,
            "domain_support": {name: int(seen.cm.total_weight) for name, seen in self._domains.items()},
        }

    def forget_class(self, label: str) -> None:
        """Move the counts of a class to FORGOTTEN, so that nothing names it; the figures stay as they are.

        A mistake between two forgotten classes is counted under None: it was none of the hits.
        """
        state = self.state_dict()
        merged: dict[tuple[str, str | None], int] = {}
        for row, column, count in state["confusion"]:
            pair = (FORGOTTEN if row == label else row, FORGOTTEN if column == label else column)
            if pair[0] == pair[1] and row != column:
                pair = (FORGOTTEN, None)
            merged[pair] = merged.get(pair, 0) + count
        self.load_state_dict({**state, "confusion": [[*pair, count] for pair, count in merged.items()]})

    def forget_domain(self, name: str) -> None:
        """Drop the figures of a domain."""
        self._domains.pop(name, None)

    def state_dict(self) -> State:
        """Return plain JSON values; the confusion matrix as [label, predicted, count] triples."""
        return {
            "window": "".join("1" if right else "0" for (_, right), _ in self._window.window),
            "confusion": [
                [label, predicted, int(count)]
                for label, row in self._confusion.data.items()
                for predicted, count in row.items()
            ],
            "domains": {name: _tally(accuracy) for name, accuracy in self._domains.items()},
            "reliability": self._reliability.counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the object that returned `state`; the window size stays this object's own."""
        self._clear()
        for label, predicted, count in state["confusion"]:
            self._pairs += predicted != label
            self._confusion.update(label, predicted, w=count)
        for right in state["window"]:
            self._window.update(True, right == "1")
        self._domains = {name: _accuracy(tally) for name, tally in state["domains"].items()}
        self._reliability = ReliabilityBins(state.get("reliability", ()))


def _tally(accuracy: Any) -> list[int]:
    right = int(accuracy.cm.total_true_positives)
    return [right, int(accuracy.cm.total_weight) - right]


def _accuracy(tally: Iterable[int]) -> Any:
    right, wrong = tally
    accuracy = river_metrics.Accuracy()
    accuracy.update(True, True, w=right)
    accuracy.update(True, False, w=wrong)
    return accuracy
