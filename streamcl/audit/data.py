"""The data of one audit: features of each kind of sample, model outputs on them, and the audit's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.statistics import Statistics
from streamcl.learners.statistics import PerHead

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""Class scores [N, C] of features [N, D]; minus infinity for a class that cannot be predicted."""

ModelStatistics: TypeAlias = PerHead[Statistics]
"""The statistics of a model with one head, or with two whose scores are blended."""

MIN_MODELS = 8
"""Models of a group whose members cost several solves each. With fewer, Student's t and the permutation test
have so little power that no measure could fail."""


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Settings of an audit.

    Attributes:
        references: models solved without the erased data.
        reruns: the same where each model is a further run of the stream.
        left_out: share of the retained samples that each reference goes without, another share each time;
            it makes their spread.
        false_alarm_rate: chance that a retrained model fails, over all measures together.
        max_samples: samples of each kind on which models are evaluated.
        permutations: random assignments of models to two groups, by which measures of groups are judged;
            with fewer than 1 / false_alarm_rate none can fail.
        logit_scale: the learner's factor from scores to logits.
        seed: of every draw.
    """

    references: int = 64
    reruns: int = 8
    left_out: float = 0.1
    false_alarm_rate: float = 0.01
    max_samples: int = 1000
    permutations: int = 1999
    logit_scale: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (fewest := min(self.references, self.reruns)) < MIN_MODELS:
            raise ValueError(f"{fewest} references are too few, expected at least {MIN_MODELS}")


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Features [N, D] after the frozen map, and the class column of each, int64 [N]."""

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                f"features {tuple(self.features.shape)} and labels {tuple(self.labels.shape)} do not fit: "
                "expected [N, D] and [N]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Examples:
        """Return the examples of a mask bool [N] or of indices int64 [M]."""
        return Examples(self.features[rows], self.labels[rows])

    def sample(self, limit: int, seed: int) -> tuple[Examples, Tensor]:
        """Return at most `limit` examples, drawn without replacement, and their rows, int64 [M] ascending."""
        if len(self) <= limit:
            rows = torch.arange(len(self))
        else:
            chosen = np.random.default_rng(seed).choice(len(self), limit, replace=False)
            rows = torch.from_numpy(np.sort(chosen))
        return self.at(rows), rows

    def shuffled(self, seed: int) -> Examples:
        """Return the same examples in a seeded order."""
        return self.at(torch.from_numpy(np.random.default_rng(seed).permutation(len(self))))


@dataclass(frozen=True, slots=True, eq=False)
class AuditData:
    """The features of one erasure.

    Attributes:
        retain: samples that the audited model has learned and may keep.
        forget: samples that were erased from it.
        test: samples of the remaining classes that no model has learned.
        columns: number of classes C.
        erased_class: column of the erased class; None for requests for samples or a subject.
        erased_test: held-out samples of that class, for the relearn time.
        base: statistics of samples that every model has learned and none can go without.
    """

    retain: Examples
    forget: Examples
    test: Examples
    columns: int
    erased_class: int | None = None
    erased_test: Examples | None = None
    base: ModelStatistics | None = None

    def __post_init__(self) -> None:
        for name, found in (("retained", self.retain), ("forgotten", self.forget), ("held-out", self.test)):
            if not len(found):
                raise ForgettingError(f"there are no {name} samples to audit with")

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples of each kind; those in `base` count as retained."""
        in_base = 0 if self.base is None else self.base.heads[0].total
        return {"retain": len(self.retain) + in_base, "forget": len(self.forget), "test": len(self.test)}


@dataclass(frozen=True, slots=True, eq=False)
class ModelOutputs:
    """Outputs of M models on N samples.

    Attributes:
        margin: [M, N], score of the true class minus the best other's; for samples of the erased class, the
            lead of the best class.
        loss: [M, N], -log of the true class's probability in nats (of the best class's for the erased class).
        correct: bool [M, N], whether the true class is predicted, the erased class included.
        labels: int64 [N], class columns.
        probabilities: float32 [M, N, C] over the remaining classes; kept for class requests only.
    """

    margin: Floats
    loss: Floats
    correct: Flags
    labels: Ints
    probabilities: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ModelGroup:
    """Outputs of models of one origin; member bool [M, N]: which retained samples each has learned."""

    forget: ModelOutputs
    retain: ModelOutputs
    test: ModelOutputs
    member: Flags

    def __len__(self) -> int:
        return len(self.member)


@dataclass(frozen=True, slots=True, eq=False)
class ModelGroups:
    """The groups that an audit compares.

    Attributes:
        audited: the model under audit, once or as many times as there are references.
        references: retrained without the erased data, each without a share of the retained data.
        unforgotten: the same with the erased data (for a class request, unable to predict the class).
        retrained: one model of all retained data, the centre for a single audited model.
        erased_class: column of the erased class.
    """

    audited: ModelGroup
    references: ModelGroup
    unforgotten: ModelGroup
    retrained: ModelGroup
    erased_class: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ProbeSet:
    """The samples on which every model is evaluated; logits are `logit_scale` times the scores."""

    forget: Examples
    retain: Examples
    test: Examples
    erased_class: int | None
    logit_scale: float

    def evaluate(self, models: Iterable[Scorer], member: Flags) -> ModelGroup:
        """Return the outputs of M models, each of which is solved only when its turn comes.

        Args:
            models: scores [N, C] of features [N, D].
            member: bool [M, N], which samples of `retain` each has learned.
        """
        parts = (self.forget, self.retain, self.test)
        rows = [[self._outputs(model(part.features), part.labels) for part in parts] for model in models]
        forget, retain, test = (
            _stacked([row[i] for row in rows], part.labels.numpy().astype(np.int64))
            for i, part in enumerate(parts)
        )
        return ModelGroup(forget, retain, test, member)

    def _outputs(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Margin [N], loss [N], correct [N] and probabilities [N, C or 0] of scores [N, C]."""
        correct = scores.argmax(dim=1) == labels
        logits = self.logit_scale * scores
        if self.erased_class is not None:
            logits[:, self.erased_class] = -torch.inf
            labels = torch.where(labels == self.erased_class, logits.argmax(dim=1), labels)
        own = logits.gather(1, labels[:, None])  # [N, 1]
        others = logits.scatter(1, labels[:, None], -torch.inf).max(dim=1).values
        # a class that this model does not know counts as the lowest one that it could predict
        own = own.maximum(logits.masked_fill(logits.isinf(), torch.inf).min(dim=1, keepdim=True).values)
        loss = logits.logsumexp(dim=1) - own[:, 0]
        kept = logits.softmax(dim=1) if self.erased_class is not None else logits[:, :0]
        return own[:, 0] - others, loss, correct, kept.float()


def _stacked(rows: list[tuple[Tensor, ...]], labels: Ints) -> ModelOutputs:
    margin, loss, correct, chances = (torch.stack([row[i] for row in rows]).numpy() for i in range(4))
    return ModelOutputs(margin, loss, correct, labels, chances if chances.shape[-1] else None)


def draw_left_out(count: int, samples: int, share: float, rng: np.random.Generator) -> Tensor:
    """Return bool [count, samples], True for another random `share` of the samples in each row."""
    size = max(1, round(share * samples))
    rows = np.zeros((count, samples), dtype=bool)
    for row in rows:
        row[rng.choice(samples, size, replace=False)] = True
    return torch.from_numpy(rows)
