"""From class scores to predictions, and to the losses that detectors and metrics read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import Prediction
from streamcl.nn.fast_paths import norms


def to_predictions(logits: Tensor, names: Sequence[str]) -> tuple[Prediction, ...]:
    """Return the best class of each row and its softmax probability; None and 0 where no class has a score.

    That is without classes, after the samples of every class have been erased (all scores are minus
    infinity), and where scores are not numbers.

    Args:
        logits: [B, C].
        names: the classes of the C columns.
    """
    if not names:
        return (Prediction(None, 0.0),) * len(logits)
    confidence, column = logits.float().softmax(dim=1).max(dim=1)  # [B], [B]
    pairs = zip(column.tolist(), confidence.tolist(), strict=True)
    return tuple(
        Prediction(names[best], sure) if math.isfinite(sure) else Prediction(None, 0.0)
        for best, sure in pairs
    )


def with_assessment(made: Sequence[Prediction], flips: Tensor, novelty: Tensor) -> tuple[Prediction, ...]:
    """Return the predictions with their stability and novelty, to 4 digits; None where one is not finite.

    Args:
        made: N predictions.
        flips: [N], the probability that another model names another class.
        novelty: [N].
    """
    columns = (1 - flips).tolist(), novelty.tolist()
    stable, new = ([round(x, 4) if math.isfinite(x) else None for x in column] for column in columns)
    return tuple(
        replace(each, stability=one, novelty=two) for each, one, two in zip(made, stable, new, strict=True)
    )


def to_ranking(logits: Tensor, names: Sequence[str], top: int) -> list[tuple[Prediction, ...]]:
    """Return the `top` likeliest classes of each row with their probabilities, the likeliest first.

    A class that cannot be predicted, as its samples have been erased, is left out.

    Args:
        logits: [B, C].
        names: the classes of the C columns.
        top: the most classes to return.
    """
    chances, columns = logits.float().softmax(dim=1).topk(min(top, len(names)), dim=1)  # [B, top], [B, top]
    known = logits.gather(1, columns).isfinite()  # [B, top]
    return [
        tuple(Prediction(names[each], sure) for each, sure, is_known in zip(*row, strict=True) if is_known)
        for row in zip(columns.tolist(), chances.tolist(), known.tolist(), strict=True)
    ]


def open_set_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target over all columns, [B], in nats.

    Args:
        logits: [B, C].
        targets: int64 [B]. One past the last column is a class never seen: it is given the score 0 in a
            column of its own, as a fresh row of a head would give it. So is a class that cannot be predicted,
            with a score of minus infinity.
    """
    width = max(logits.shape[1], int(targets.max()) + 1) if len(targets) else logits.shape[1]
    padded = F.pad(logits.float(), (0, width - logits.shape[1]))
    own = padded.gather(1, targets[:, None])
    padded = padded.scatter(1, targets[:, None], own.masked_fill(own == -math.inf, 0.0))
    return F.cross_entropy(padded, targets, reduction="none")


def all_finite(*values: Tensor) -> bool:
    """Return whether every element of every tensor is finite; the device is asked once.

    A norm is infinite or NaN where an element is; where only its square is too large, the elements decide.
    """
    if not values:
        return True
    sizes = torch.stack([norm.double() for norm in norms(values)])
    return bool(sizes.isfinite().all()) or all(bool(torch.isfinite(value).all()) for value in values)
