"""What models answer on the audit's samples, reduced to what the measures need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.audit.data import Examples, Flags, Floats, Ints, Scorer


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Of M models on N samples.

    margin [M, N]: score of the true class minus the best other's; for samples of a class that is gone, how
    far the best class leads. loss [M, N]: -log of the true class's probability (of the best class's, where
    the class is gone), nats. right [M, N]: whether the true class is named, a class that is gone included.
    chances float32 [M, N, C]: probabilities over the classes that stay; only kept for class requests.
    """

    margin: Floats
    loss: Floats
    right: Flags
    labels: Ints
    chances: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Models of one origin (references, audited, unforgotten) and what they answer.

    member: bool [M, N], which of the retained samples looked at a model has learned.
    """

    forget: Answers
    retain: Answers
    test: Answers
    member: Flags

    def __len__(self) -> int:
        return len(self.member)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The models that an audit compares.

    references: retrained without the data, each without a share of the rest. unforgotten: the same, never
    made to forget (for a class request only without its name). retrained: the one model of all that is
    retained; it is where a single audited model should be, as that was spared no share.
    gone: the column of a forgotten class.
    """

    audited: Group
    references: Group
    unforgotten: Group
    retrained: Group
    gone: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The samples on which every model is asked, and how: sharpness makes logits of scores."""

    forget: Examples
    retain: Examples
    test: Examples
    gone: int | None
    sharpness: float

    def ask(self, models: Iterable[Scorer], member: Flags) -> Group:
        """The answers of all models, each of which is solved only when its turn comes."""
        parts = (self.forget, self.retain, self.test)
        asked = [[self._answer(model(part.features), part.labels) for part in parts] for model in models]
        stacked = [
            _stacked([row[i] for row in asked], part.labels.numpy().astype(np.int64))
            for i, part in enumerate(parts)
        ]
        return Group(stacked[0], stacked[1], stacked[2], member)

    def _answer(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        right = scores.argmax(dim=1) == labels
        logits = self.sharpness * scores
        if self.gone is not None:
            logits[:, self.gone] = -torch.inf
            best = logits.argmax(dim=1)
            labels = torch.where(labels == self.gone, best, labels)
        own = logits.gather(1, labels[:, None])  # [N, 1]
        others = logits.scatter(1, labels[:, None], -torch.inf).max(dim=1).values
        # a class that this model does not know at all: as far as the worst that it could name
        own = own.maximum(logits.masked_fill(logits.isinf(), torch.inf).min(dim=1, keepdim=True).values)
        loss = logits.logsumexp(dim=1) - own[:, 0]
        chances = logits.softmax(dim=1).float() if self.gone is not None else logits[:, :0].float()
        return own[:, 0] - others, loss, right, chances


def _stacked(rows: list[tuple[Tensor, ...]], labels: Ints) -> Answers:
    margin, loss, right, chances = (torch.stack([row[i] for row in rows]).numpy() for i in range(4))
    return Answers(margin, loss, right, labels, chances if chances.shape[-1] else None)
