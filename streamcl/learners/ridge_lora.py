"""The default learner: a closed form remembers and forgets exactly, LoRA adds what frozen features lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from streamcl.distributed.process_group import ProcessGroup
from streamcl.errors import ForgettingError
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import PrefixReader, detector_features
from streamcl.learners.calibration import Calibration
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.predictions import all_finite, open_set_nll, to_predictions
from streamcl.learners.ridge import Listener, RidgeLearner, by_column
from streamcl.learners.rollback import Transaction
from streamcl.protocols import State


@dataclass(frozen=True, slots=True, eq=False)
class RidgeLoRAFeatures:
    """What the learner reads of B samples.

    features: float32 [B, D], of the frozen blocks. views: each view's tokens [B, N, d] where the adapted
    branch begins. adapted: float32 [B, E], None without a branch that has settled.
    """

    features: Tensor
    views: Sequence[Tensor]
    adapted: Tensor | None

    def __getitem__(self, rows: Sequence[int]) -> RidgeLoRAFeatures:
        """What was read of some of them."""
        adapted = None if self.adapted is None else self.adapted[rows]
        return RidgeLoRAFeatures(self.features[rows], [view[rows] for view in self.views], adapted)


class RidgeLoRALearner:
    """Two ridge heads' scores as one: on frozen features, and on features adapted early in the stream.

    exact: the frozen branch, a RidgeLearner of its own; order-free, and what is forgotten there is gone
        exactly. Nothing that LoRA does reaches it.
    adapted: shares the frozen prefix; None once it has been dropped, which leaves the exact branch alone.
    """

    def __init__(self, exact: RidgeLearner, adapted: AdaptedBranch | None) -> None:
        self.exact = exact
        self.adapted = adapted
        self._calibration = Calibration()
        self._listener: Listener | None = None
        self._adapted_until = 0  # the stream offset up to which samples have trained the adapters

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of both heads."""
        return self.exact.classes

    @property
    def adapted_until(self) -> int:
        """The stream offset up to which samples have trained the adapters."""
        return self._adapted_until

    @property
    def backbone(self) -> Any:
        """The frozen backbone that both branches share."""
        return self.exact.backbone

    @property
    def sharpness(self) -> float:
        """What scores are multiplied by before the softmax."""
        return self._calibration.sharpness

    @property
    def group(self) -> ProcessGroup:
        """Those that learn each batch together."""
        return self.exact.group

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """One guess per sample; changes nothing that decides the future."""
        return to_predictions(self.logits(samples), self.classes) if samples else ()

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, C] of samples, one or more, whose softmax is the classes' probabilities."""
        return self._calibration.sharpness * self.scores_refit(self.read(samples))

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, adapt while that is still on, and add its labelled samples to both heads."""
        if not batch.samples:
            return StepResult((), (), learned=())
        return self.learn_from(batch, self.read_together(batch.samples))

    def read(self, samples: Sequence[Sample]) -> RidgeLoRAFeatures:
        """What `scores` and `learn_from` need of samples, one or more."""
        features, views = self._read(samples)  # [B, D]
        if self.adapted is None or not self.adapted.frozen:
            return RidgeLoRAFeatures(features, views, None)
        return RidgeLoRAFeatures(features, views, self.adapted.features(views[0]))

    def refresh_features(self, reading: RidgeLoRAFeatures) -> RidgeLoRAFeatures:
        """An older reading with what it lacks of `scores`: the adapters may have settled since."""
        if self.adapted is None or not self.adapted.frozen or reading.adapted is not None:
            return reading
        return replace(reading, views=(), adapted=self.adapted.features(reading.views[0]))

    def read_together(self, samples: Sequence[Sample]) -> RidgeLoRAFeatures:
        """`read` by all ranks, each its share, of which alone the views are."""
        mine = self.read(self.group.local_samples(samples))
        adapted = None if mine.adapted is None else self.group.all_gather_rows(mine.adapted, samples)
        return RidgeLoRAFeatures(self.group.all_gather_rows(mine.features, samples), mine.views, adapted)

    def scores(self, reading: RidgeLoRAFeatures) -> Tensor:
        """float64 [B, C] by the weights in use while learning."""
        scores = self.exact.head.scores(reading.features)
        if self.adapted is None or reading.adapted is None:
            return scores
        return self.adapted.blend_scores(scores, self.adapted.head.scores(reading.adapted))

    def scores_refit(self, reading: RidgeLoRAFeatures) -> Tensor:
        """float64 [B, C] by weights of all that is known."""
        scores = self.exact.head.scores_refit(reading.features)
        if self.adapted is None or reading.adapted is None:
            return scores
        return self.adapted.blend_scores(scores, self.adapted.head.scores_refit(reading.adapted))

    def guesses(self, scores: Tensor) -> tuple[Prediction, ...]:
        """What scores [B, C] say, as sure as they have deserved of late."""
        return to_predictions(self._calibration.sharpness * scores, self.classes)

    def learn_from(self, batch: Batch, reading: RidgeLoRAFeatures) -> StepResult:
        """`learn`, given what was read of the batch's samples."""
        features, views, adapted = reading.features, reading.views, reading.adapted
        scores = self.scores(reading)  # [B, C]
        predicted = self.guesses(scores)
        learnable = batch.labelled
        if not learnable:
            return StepResult(predicted, (), learned=())
        rows = _labelled_rows(batch.samples)
        names = [sample.label for sample in learnable]
        index = ClassIndex([*self.classes, *(str(name) for name in names)])
        targets = index.columns(names, features.device)
        shown = tuple(open_set_nll(self._calibration.sharpness * scores[rows], targets).tolist())
        if not all_finite(features) or (adapted is not None and not all_finite(adapted)):
            return StepResult(predicted, shown, learned=())
        told = StepResult(predicted, shown, batch.labelled_offsets, detector_features(features))
        adapting = self.adapted is not None and not self.adapted.frozen
        with Transaction(self.exact.savepoint(), self._calibration.savepoint()) as step:
            if self.adapted is not None:
                step.cover(self.adapted.savepoint())
            if not self._learn_adapted(views, adapted, batch, targets, len(index)):
                step.refuse()
                return StepResult(predicted, shown, learned=())
            self.exact.add(features[rows], targets, index)
            known = targets < scores.shape[1]
            self._calibration.update(scores[rows][known], targets[known])
            self._tell(learnable, features[rows], None if adapted is None or adapting else adapted[rows])
        if adapting:
            self._adapted_until = batch.end
        return told

    def consolidate(self) -> Mapping[str, Any]:
        """At the first plateau the adapted branch settles; later there is nothing to consolidate."""
        if self.adapted is None or self.adapted.frozen:
            return {}
        self.adapted.freeze()
        return {"settled": True}

    def measure(self, samples: Sequence[Sample]) -> Any:
        """The share of these samples in the sums of each head, the adapted one's by the settled adapters."""
        (features, views), targets = self._read(samples), self.exact.columns(samples)
        share = self.exact.head.measure(features, targets)
        if self.adapted is None:
            return share, None
        adapted = self.adapted.features(views[0])
        return share, self.adapted.head.measure(adapted, targets)

    @property
    def widths(self) -> tuple[int, ...]:
        """D of the exact head, and of the adapted one where there is one."""
        more = () if self.adapted is None else (self.adapted.head.summed,)
        return (*self.exact.widths, *more)

    def listen(self, listener: Listener) -> None:
        """From now on tell samples that were learned, and their rows [B, D] in each head.

        Those of samples that trained the adapters are not told of the adapted head: nothing of them can be
        subtracted there.
        """
        self._listener = listener

    def rows(self, samples: Sequence[Sample]) -> tuple[Any, ...]:
        """The rows [B, D] of samples in each head, by the settled adapters, as NumPy arrays."""
        features, views = self._read(samples)
        exact = self.exact.summed(features)
        if self.adapted is None:
            return (exact,)
        adapted = self.adapted.features(views[0])
        return exact, self.adapted.head.features(adapted).cpu().numpy()

    def gathered(self, parts: Sequence[Iterable[Any]]) -> Any:
        """What `measure` gives, from the parts of each head: rows, and by class a count and a sum of rows."""
        exact = self.exact.gathered(parts[:1])
        if self.adapted is None:
            return exact, None
        return exact, self.adapted.head.gathered(by_column(parts[1], self.classes))

    def combine(self, one: Any, other: Any) -> Any:
        """Both shares as one."""
        return tuple(None if a is None else self.exact.combine(a, b) for a, b in zip(one, other, strict=True))

    def difference(self, one: Any, other: Any) -> float:
        """The largest relative difference of either head's shares."""
        pairs = zip(one, other, strict=True)
        return max(self.exact.difference(a, b) for a, b in pairs if a is not None)

    def subtract(self, sums: Any) -> Mapping[str, Any]:
        """Forget by what `measure` gave, in both heads or, where that is refused, in neither."""
        exact, adapted = sums
        if self.adapted is None or adapted is None:
            return self.exact.subtract(exact)
        before = self.adapted.head.state_dict()
        self.adapted.head.remove(adapted)
        try:
            return self.exact.subtract(exact)
        except ForgettingError:
            self.adapted.head.load_state_dict(before)
            raise

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        column = self.classes.index(name) if name in self.classes else -1
        self.exact.drop_class(name)
        if self.adapted is not None:
            self.adapted.drop_class(column)

    def weights_trained_on(self, traces: Iterator[Sequence[Any]]) -> tuple[str, ...]:
        """What came before the adapters settled trained them, and its statistics cannot be derived again."""
        if self.adapted is None or not self._adapted_until:
            return ()
        touched = any(trace.offset < self._adapted_until for chunk in traces for trace in chunk)
        return ("adapters", "adapted statistics") if touched else ()

    def drop_adapted(self) -> Callable[[], None]:
        """Lose the adapted branch whole; what is left never saw a gradient. Returns what takes that back."""
        branch = self.adapted

        def undo() -> None:
            self.adapted = branch

        self.adapted = None
        return undo

    def state_dict(self) -> State:
        """Both branches and the calibration; the backbone's own weights are not in it."""
        return {
            "exact": self.exact.state_dict(),
            "adapted": None if self.adapted is None else self.adapted.state_dict(),
            "calibration": self._calibration.state_dict(),
            "adapted_until": self._adapted_until,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.exact.load_state_dict(state["exact"])
        self._calibration.load_state_dict(state["calibration"])
        self._adapted_until = int(state["adapted_until"])
        if state["adapted"] is None:
            self.adapted = None
        elif self.adapted is not None:
            self.adapted.load_state_dict(state["adapted"])

    def _read(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Frozen features [B, D], and each view's tokens where the adapted branch begins, if there is one."""
        reader = self.exact.reader
        if self.adapted is None or not isinstance(reader, PrefixReader):
            return self.exact.features(samples), []
        return reader.read(samples, self.adapted.adapters.first_block)

    def _tell(self, samples: Sequence[Sample], exact: Tensor, adapted: Tensor | None) -> None:
        if self._listener is None:
            return
        more: list[Any] = [] if self.adapted is None else [None]
        if self.adapted is not None and adapted is not None:
            more = [self.adapted.head.features(adapted).cpu().numpy()]
        self._listener(samples, [self.exact.summed(exact), *more])

    def _learn_adapted(
        self, views: Sequence[Tensor], features: Tensor | None, batch: Batch, targets: Tensor, classes: int
    ) -> bool:
        """Adapt, where that is still on, and add the features as they are then; False if not finite."""
        if self.adapted is None:
            return True
        if features is None:
            mine = _labelled_rows(self.group.local_samples(batch.samples)) or [
                0
            ]  # a row too many counts nowhere
            if not self.adapted.adapt([view[mine] for view in views], targets, classes, batch.labelled):
                return False
            features = self.group.all_gather_rows(self.adapted.features(views[0]), batch.samples)
            if not all_finite(features):
                return False
        self.adapted.head.grow(classes)
        self.adapted.head.update(features[_labelled_rows(batch.samples)], targets)
        return True


def _labelled_rows(samples: Sequence[Sample]) -> list[int]:
    return [i for i, sample in enumerate(samples) if sample.label is not None]
