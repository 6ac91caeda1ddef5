"""The retain set of a repair: samples that are not forgotten, and the model's outputs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.methods.protocol import Context

Retain: TypeAlias = Callable[[int], Sequence[Sample]]
"""Gives up to so many samples to hold on to: the next live batches, stored images or public proxies.

Their labels are never learned, so a live batch can be used before it is predicted. Samples of the request
are left out by whoever asks.
"""

FEWEST = 8
"""Samples below which a repair is refused: with none it destroys the model (0.0 % of the forgotten class but
1.7 % of all others was measured for CLIP)."""


def missing(retain: Retain | None, request: ForgetRequest, context: Context) -> str | None:
    """Why there is nothing to hold on to; None where there is, or may be."""
    given = retain is not None or context.others is not None
    if given or len(_held(request, context)) >= FEWEST:
        return None
    return (
        "there is nothing to hold on to (the source can neither fetch samples by id nor look ahead, no proxy "
        f"samples were given, the hard buffer has fewer than {FEWEST} others), and without it the repair "
        "destroys the model"
    )


def retained(
    retain: Retain | None, request: ForgetRequest, context: Context, forgotten: Sequence[Sample], limit: int
) -> list[Sample]:
    """At most `limit` samples that are neither in scope nor of a class that the learner does not know.

    They are those of the hard buffer, then those that `retain` brings, or the run itself where that is None.
    Raises ForgettingError where fewer than FEWEST are left.
    """
    ids = {trace.id for chunk in context.scope.chunks() for trace in chunk} | {s.id for s in forgotten}
    bring = retain or context.others
    offered = [*_held(request, context), *(bring(limit) if bring is not None else ())]
    known = {None, *context.learner.classes}
    found = {s.id: s for s in offered if s.id not in ids and s.label in known and _others(request, s)}
    if len(found) < FEWEST:
        raise ForgettingError(
            f"{len(found)} samples to hold on to are too few, and without them the repair destroys the model",
            hint=f"give at least {FEWEST} that are not to be forgotten, labelled or not",
        )
    return list(found.values())[:limit]


class ReferenceOutputs:
    """How a model answered, to be kept: its softmax over the columns that stay (arXiv 1606.09282)."""

    def __init__(self, logits: Tensor, kept: Tensor) -> None:
        """logits [N, C] and the columns [K] that stay."""
        self._kept = kept = kept.to(logits.device)
        self._wanted = logits.detach()[:, kept].log_softmax(dim=1)  # [N, K]

    def distance(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence, in nats, of the answers [B, C] for those rows from the old."""
        now = logits[:, self._kept].log_softmax(dim=1)
        return F.kl_div(now, self._wanted[rows], reduction="batchmean", log_target=True)

    def agreement(self, logits: Tensor) -> float:
        """The share of rows whose best column is the old one."""
        same = logits[:, self._kept].argmax(dim=1) == self._wanted.argmax(dim=1)
        return float(same.double().mean())


def kept_columns(classes: int, forgotten: int | None) -> Tensor:
    """int64: every column but that of the class that goes."""
    return torch.tensor([i for i in range(classes) if i != forgotten], dtype=torch.int64)


def _held(request: ForgetRequest, context: Context) -> list[Sample]:
    buffer = context.capabilities.replay_buffer
    return [] if buffer is None else [s for s in buffer.samples if _others(request, s)]


def _others(request: ForgetRequest, sample: Sample) -> bool:
    of_class = request.kind == "class" and sample.label == request.label
    of_subject = request.kind == "subject" and not request.all_users and sample.subject == request.subject
    return not of_class and not of_subject
