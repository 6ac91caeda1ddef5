"""The retain set of a repair: samples that are not forgotten, and the model's outputs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.methods.protocol import Context

Retain: TypeAlias = Callable[[int], Sequence[Sample]]
"""Gives up to so many samples to retain: the next live batches, stored images or public proxies.

Their labels are never learned, so a live batch can be used before it is predicted; `retained_samples` leaves
out samples of the request.
"""

_Item = TypeVar("_Item")

MIN_RETAINED = 8
"""Samples below which a repair is refused: with none it destroys the model (0.0 % of the forgotten class but
1.7 % of all others was measured for CLIP)."""


def missing_reason(retain: Retain | None, request: ForgetRequest, context: Context) -> str | None:
    """Return why there is nothing to retain; None where there is, or may be."""
    given = retain is not None or context.others is not None
    if given or len(_held(request, context)) >= MIN_RETAINED:
        return None
    return (
        "there is nothing to retain (the source can neither fetch samples by id nor look ahead, no proxy "
        f"samples were given, the hard buffer has fewer than {MIN_RETAINED} others), and without it the "
        "repair destroys the model"
    )


def retained_samples(
    retain: Retain | None, request: ForgetRequest, context: Context, forgotten: Sequence[Sample], limit: int
) -> list[Sample]:
    """Return at most `limit` samples that are neither in scope nor of a class that the learner does not know.

    They are those of the hard buffer, then those that `retain` brings, or the run itself where that is None.
    Raise ForgettingError where fewer than MIN_RETAINED are left.
    """
    ids = {row.id for chunk in context.scope.chunks() for row in chunk} | {s.id for s in forgotten}
    bring = retain or context.others
    offered = [*_held(request, context), *(bring(limit) if bring is not None else ())]
    known = {None, *context.learner.classes}
    found = {s.id: s for s in offered if s.id not in ids and s.label in known and _others(request, s)}
    if len(found) < MIN_RETAINED:
        raise ForgettingError(
            f"{len(found)} samples to retain are too few, and without them the repair destroys the model",
            hint=f"give at least {MIN_RETAINED} that are not to be forgotten, labelled or not",
        )
    return list(found.values())[:limit]


class ReferenceOutputs:
    """A model's outputs as a reference: its softmax over the columns that stay (arXiv 1606.09282).

    Args:
        logits: [N, C], before the erasure.
        columns: int64 [K], those that stay.
    """

    def __init__(self, logits: Tensor, columns: Tensor) -> None:
        self._columns = columns.to(logits.device)
        self._wanted = logits.detach()[:, self._columns].log_softmax(dim=1)  # [N, K]

    def distance(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the mean Kullback-Leibler divergence of logits from the reference, a scalar in nats.

        Args:
            logits: [B, C], of the model as it is now.
            rows: int64 [B], which of the reference's N samples they belong to.
        """
        now = logits[:, self._columns].log_softmax(dim=1)
        return F.kl_div(now, self._wanted[rows], reduction="batchmean", log_target=True)

    def agreement(self, logits: Tensor) -> float:
        """Return the share of the rows of logits [N, C] whose best column is that of the reference."""
        same = logits[:, self._columns].argmax(dim=1) == self._wanted.argmax(dim=1)
        return float(same.double().mean())


def _held(request: ForgetRequest, context: Context) -> list[Sample]:
    buffer = context.capabilities.replay_buffer
    return [] if buffer is None else [s for s in buffer.samples if _others(request, s)]


def _others(request: ForgetRequest, sample: Sample) -> bool:
    of_class = request.kind == "class" and sample.label == request.label
    of_subject = request.kind == "subject" and not request.all_users and sample.subject == request.subject
    return not of_class and not of_subject


def subsample(items: Sequence[_Item], limit: int) -> list[_Item]:
    """Return at most `limit` of the items, evenly spread over all of them, in their order."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
