"""A closed-form head on a frozen backbone: no gradients, no order, exact forgetting by subtraction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.errors import ForgettingError
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.heads.gram import Gram
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.block_features import FeatureReader, FrozenReader, detector_features
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.predictions import all_finite, open_set_nll, to_predictions
from streamcl.learners.rollback import Rollback, Transaction
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.protocols import State

Listener: TypeAlias = Callable[[Sequence[Sample], Sequence[Any]], None]


class RidgeLearner:
    """Ridge regression to one-hot targets on tokens of several frozen blocks (RanPAC, arXiv 2307.02251).

    Each block gives its class token and its central patch token, layer-normalised; all of them side by side
    are the features, and `tta_views` of 2 averages them over the image and its mirrored inner part. What
    `learn` guesses comes from weights that are a little older than its statistics (see `refit_fraction` of
    the head); `predict` uses weights of all that is known. `sharpness` multiplies the regression scores
    before the softmax that makes confidences of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        head: RidgeHead,
        *,
        blocks: Sequence[int],
        tta_views: int = 1,
        sharpness: float = 10.0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.group = group
        self.backbone = backbone
        self.compute = compute
        self.head = head
        self.reader: FeatureReader = FrozenReader(backbone, compute, blocks, tta_views=tta_views)
        self._sharpness = sharpness
        self._index = ClassIndex()
        self._listener: Listener | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        return self._index.names

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """One guess per sample; changes nothing that decides the future."""
        return to_predictions(self.logits(samples), self.classes) if samples else ()

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""
        return self._sharpness * self.head.scores_refit(self.features(samples))

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then add its labelled samples to the statistics."""
        if not batch.samples:
            return StepResult((), (), learned=())
        mine = self.features(self.group.local_samples(batch.samples))
        features = self.group.all_gather_rows(mine, batch.samples)  # [B, D]
        logits = self._logits(features)  # [B, C]
        predicted = to_predictions(logits, self.classes)
        learnable = batch.labelled
        if not learnable:
            return StepResult(predicted, (), learned=())
        rows = [i for i, sample in enumerate(batch.samples) if sample.label is not None]
        index = ClassIndex([*self.classes, *(str(sample.label) for sample in learnable)])
        targets = index.columns([sample.label for sample in learnable], features.device)
        shown = tuple(open_set_nll(logits[rows], targets).tolist())
        if not all_finite(features):
            return StepResult(predicted, shown, learned=())
        told = StepResult(predicted, shown, batch.labelled_offsets, detector_features(features))
        with Transaction(self.savepoint()):
            self.add(features[rows], targets, index)
            if self._listener is not None:
                self._listener(learnable, (self.summed(features[rows]),))
        return told

    def add(self, features: Tensor, targets: Tensor, index: ClassIndex) -> None:
        """Add features [B, D] of targets [B], columns of `index`, which knows all that this learner does.

        Where it may fail half-way the caller takes it back, by `kept`.
        """
        self._index = index
        self.head.grow(len(index))
        self.head.update(features, targets)

    def savepoint(self) -> Rollback:
        """What takes back one `add` that comes next, bit for bit."""
        index, head = self._index, self.head.savepoint()

        def undo() -> None:
            self._index = index
            head()

        return undo

    def consolidate(self) -> Mapping[str, Any]:
        """Nothing: sums have no adapters to settle."""
        return {}

    def measure(self, samples: Sequence[Sample]) -> Any:
        """The share of these samples, with their labels, in the head's sums; nothing is learned of them."""
        return self.head.measure(self.features(samples), self.columns(samples))

    @property
    def widths(self) -> tuple[int, ...]:
        """D of the head: of the rows that it sums."""
        return (self.head.summed,)

    def listen(self, listener: Listener) -> None:
        """From now on tell samples that were learned, and their rows, float64 [B, D], in a tuple of one."""
        self._listener = listener

    def rows(self, samples: Sequence[Sample]) -> tuple[Any, ...]:
        """The rows [B, D] of samples, derived as when they were learned, a NumPy array in a tuple of one."""
        return (self.summed(self.features(samples)),)

    def summed(self, features: Tensor) -> Any:
        """What the head sums of features [B, d], as a NumPy array, float64 [B, D]."""
        return self.head.features(features).cpu().numpy()

    def gathered(self, parts: Sequence[Iterable[Any]]) -> Any:
        """What `measure` gives, from parts of the one head: rows, and by class a count and a sum of rows."""
        return self.head.gathered(by_column(parts[0], self.classes))

    def columns(self, samples: Sequence[Sample]) -> Tensor:
        """int64 [B]: the columns of labelled samples; ForgettingError for a class that was never learned."""
        targets = self._index.columns([sample.label for sample in samples], self.backbone.device)
        if bool((targets < 0).any()):
            raise ForgettingError("a sample's class is not among those learned, so it cannot be in the sums")
        return targets

    def combine(self, one: Any, other: Any) -> Any:
        """Both sums as one."""
        return _added(one, other, 1)

    def difference(self, one: Any, other: Any) -> float:
        """The largest difference of any entry, relative to the largest entry of its sum."""
        apart = _added(one, other, -1)
        pairs = [(_largest(getattr(apart, f.name)), _largest(getattr(one, f.name))) for f in fields(one)]
        return max(distance / size if size else distance for distance, size in pairs)

    def subtract(self, sums: Any) -> Mapping[str, Any]:
        """Forget by what `measure` gave; raises like the head's `remove`, and then nothing has changed."""
        self.head.remove(sums)
        figures = {"samples_left": self.head.statistics.total}
        if not hasattr(self.head, "smallest_eigenvalue"):
            return figures
        return {**figures, "smallest_eigenvalue_over_lambda": self.head.smallest_eigenvalue()}

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        if name not in self._index:
            raise ForgettingError("there is no such class to drop")
        self.head.drop_class(self.classes.index(name))
        self._index = ClassIndex(each for each in self.classes if each != name)

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, D]: fixed for ever, whatever is learned and whichever samples come together."""
        return self.reader(samples)

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """What `scores` needs of samples: their features."""
        return self.features(samples)

    def refresh_features(self, reading: Tensor) -> Tensor:
        """The reading itself: features are fixed for ever."""
        return reading

    def scores(self, reading: Tensor) -> Tensor:
        """float64 [B, C] by the weights in use while learning."""
        return self.head.scores(reading)

    def state_dict(self) -> State:
        """The head's statistics and the names of its columns."""
        return {"head": self.head.state_dict(), "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self._index = ClassIndex(state["classes"])
        self.head.load_state_dict(state["head"])

    def _logits(self, features: Tensor) -> Tensor:
        return self._sharpness * self.scores(features)


def by_column(parts: Iterable[Any], classes: Sequence[str]) -> Iterator[tuple[Any, dict[int, Any]]]:
    """Parts with columns of the head for the names of classes."""
    column = {name: i for i, name in enumerate(classes)}
    for rows, sums in parts:
        yield rows, {column[name]: total for name, total in sums.items()}


def _added(one: Any, other: Any, sign: int) -> Any:
    """one + sign * other, part by part, of two sums of the same head."""
    return type(one)(*(_part(getattr(one, f.name), getattr(other, f.name), sign) for f in fields(one)))


def _part(one: Gram | Tensor, other: Any, sign: int) -> Gram | Tensor:
    if isinstance(one, Gram):
        total = one.copy()
        total.add_sum(other, sign=sign)
        return total
    return torch.add(one, other, alpha=sign)


def _largest(part: Gram | Tensor) -> float:
    if isinstance(part, Gram):
        return part.largest
    return float(part.abs().max()) if part.numel() else 0.0
