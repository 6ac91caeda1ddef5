"""Evaluates a learner on held-out samples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from streamcl.errors import BadRecord
from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.events import HoldoutPart, Prediction, Sample
from streamcl.protocols import Collective, Learner


@dataclass(frozen=True, slots=True)
class HoldoutResult:
    """Accuracies in [0, 1] of one pass over the held-out samples.

    accuracy: over the samples whose class the learner has seen; None while there is none.
    parts: accuracy of each part over all of its samples; a class not seen yet counts as wrong.
    sizes: samples in each part. calibration_error: the expected one of the confidences (see
        `reliability`), over the samples that `accuracy` is of.
    """

    accuracy: float | None
    parts: dict[str, float]
    sizes: dict[str, int]
    calibration_error: float | None


class HoldoutEvaluator:
    """Evaluates a learner on held-out parts every `every_samples` records.

    Args:
        parts: the held-out samples.
        every_samples: records between two evaluations; None evaluates at ends only.
        at_part_end: also at the end of a part.
        at_stream_end: also at the end of the stream.
        max_per_part: samples per part, evenly spread; None takes all.
        records_per_sample: an evaluation every `every_samples` records waits until so many have passed for
            each held-out sample, which bounds the share of time that it takes; 0 sets no bound.
        batch_size: samples that are predicted at once.
        group: ranks that evaluate together, each its share of the samples; None: this process alone.
        predict: returns what the learner predicts for held-out samples; None asks the learner.
    """

    def __init__(
        self,
        parts: Sequence[HoldoutPart],
        *,
        every_samples: int | None = None,
        at_part_end: bool = True,
        at_stream_end: bool = True,
        max_per_part: int | None = None,
        records_per_sample: int = 0,
        batch_size: int = 64,
        group: Collective | None = None,
        predict: Callable[[Sequence[Sample]], Sequence[Prediction]] | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self._every = every_samples
        self._marks = (
            frozenset(p.end_offset for p in parts if p.end_offset is not None) if at_part_end else frozenset()
        )
        self._at_stream_end = at_stream_end
        self._per_sample = records_per_sample
        self._limit = max_per_part
        self._batch_size = batch_size
        self._group, self._predict = group, predict

    def due(self, before: int, after: int) -> bool:
        """Return whether an evaluation falls in the offsets (before, after]."""
        if not (size := self._size):
            return False
        every = None if self._every is None else max(self._every, self._per_sample * size)
        regular = every is not None and before // every != after // every
        return regular or any(before < mark <= after for mark in self._marks)

    @property
    def at_stream_end(self) -> bool:
        """Whether there is something to evaluate on at the end of the stream."""
        return self._at_stream_end and bool(self._size)

    @property
    def _size(self) -> int:
        return sum(len(part.samples) for part in self.parts)

    def finished_parts(self, offset: int) -> tuple[str, ...]:
        """Return the names of the parts whose last sample has passed at that offset."""
        return tuple(p.name for p in self.parts if p.end_offset is not None and p.end_offset <= offset)

    def evaluate(self, learner: Learner) -> HoldoutResult:
        """Predict the held-out samples; the learner's state stays as it is."""
        known = frozenset(learner.classes)
        correct: dict[str, int] = {}
        sizes: dict[str, int] = {}
        seen, reliability = 0, ReliabilityBins()
        for part in self.parts:
            hits = total = 0
            for samples in self._chunks(part):
                usable = [sample for sample in samples if sample.label in known]
                predicted = (self._predict or learner.predict)(usable)
                for prediction, sample in zip(predicted, usable, strict=True):
                    right = prediction.label == sample.label
                    hits += right
                    reliability.add(prediction.confidence, right=right)
                seen += len(usable)
                total += len(samples)
            correct[part.name], sizes[part.name] = hits, total
        if self._group is not None:
            counts = self._group.all_gather_object((correct, sizes, seen, reliability.counts))
            correct, sizes = (_summed([each[i] for each in counts]) for i in (0, 1))
            seen = sum(each[2] for each in counts)
            reliability = reduce(operator.add, (ReliabilityBins(each[3]) for each in counts))
        return HoldoutResult(
            accuracy=sum(correct.values()) / seen if seen else None,
            parts={name: correct[name] / sizes[name] for name in sizes if sizes[name]},
            sizes=sizes,
            calibration_error=reliability.calibration_error,
        )

    def _chunks(self, part: HoldoutPart) -> Iterator[list[Sample]]:
        chunk: list[Sample] = []
        chosen = part.places(self._limit)
        for i in chosen if self._group is None else chosen[self._group.rank :: self._group.world_size]:
            try:
                chunk.append(part.samples[i])
            except BadRecord:
                continue
            if len(chunk) == self._batch_size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counts) for name in counts[0]}
