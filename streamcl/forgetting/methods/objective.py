"""The objective of a repair: samples to forget and to retain, as tokens that enter the blocks it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.methods.retain_set import MIN_RETAINED, ReferenceOutputs
from streamcl.forgetting.methods.weight_repair import RepairableBlocks

MIN_BOUND_SHARE = 0.75
"""Share of the bound that the forgotten samples' loss must reach, or the erasure counts as failed."""

MAX_RECOGNISED = 0.1
"""Share of a forgotten class's samples that may still be recognised by the row that it had."""

MAX_BOUND_SHARE = 2.0
"""Times the bound past which a loss shows what was deleted, and the erasure counts as failed."""

MIN_RETAINED_AGREEMENT = 0.75
"""Share of retained answers that must stay the same, or the erasure counts as failed."""

BOUND_MARGIN = 0.3
"""Nats past the bound that the samples used are aimed at, as others of the class follow less far."""

PROBE_MARGIN = 2.0
"""Nats by which the probe's score of its class exceeds all others together: a sure answer of 0.88."""

PROBE_RIDGE = 1e-2

Figures: TypeAlias = Mapping[str, float]
"""See `ForgetObjective.figures`."""


class ForgetObjective:
    """Samples to forget and samples to retain.

    A class is judged by the row of the head that it had, which whoever kept a copy may put back; one that
    the stream never contained by a probe row, fitted once. `instead` is how its samples were answered among
    the classes that stay; None for samples and subjects, whose classes stay. The bound is the loss of an
    unseen class, ln C, for a class; for samples and subjects the loss of retained samples, which is why those
    must have labels then.

    Args:
        blocks: the blocks to repair, with the head above them.
        forget: tokens [F, T, d] of the samples to forget.
        targets: int64 [F], their columns; None where the class has no row in the head.
        retain: tokens [R, T, d] of the samples to retain.
        bound: in nats; None for a class.
    """

    def __init__(
        self,
        blocks: RepairableBlocks,
        forget: Tensor,
        targets: Tensor | None,
        retain: Tensor,
        bound: float | None,
    ) -> None:
        self.blocks, self.forget, self._targets, self.retain = blocks, forget, targets, retain
        self._of_class = bound is None
        with torch.no_grad():
            logits, own = self.head(retain), self.head(forget)
        classes = logits.shape[1]
        column = int(targets[0]) if targets is not None and bound is None else None
        self.columns = torch.tensor([i for i in range(classes) if i != column], dtype=torch.int64)
        self.reference = ReferenceOutputs(logits, self.columns)
        self.instead = ReferenceOutputs(own, self.columns) if bound is None else None
        self._probe = None if targets is not None else self._fresh_probe()
        self.bound = math.log(max(2, classes + (targets is None))) if bound is None else bound

    @classmethod
    def of(
        cls,
        blocks: RepairableBlocks,
        request: ForgetRequest,
        forgotten: Sequence[Sample],
        others: Sequence[Sample],
    ) -> ForgetObjective:
        """Return the objective of a request. others: the samples to retain."""
        retain, forget = blocks.entering(others), blocks.entering(forgotten)
        targets = blocks.model.targets(forgotten)
        if request.kind == "class":
            return cls(blocks, forget, targets if bool((targets >= 0).all()) else None, retain, None)
        columns = blocks.model.targets(others)
        if int((columns >= 0).sum()) < MIN_RETAINED:
            raise ForgettingError(
                f"fewer than {MIN_RETAINED} retained samples have labels, so the loss of others is unknown",
                hint="give more labelled samples to retain",
            )
        with torch.no_grad():
            logits = blocks.model.head(blocks.features(retain))
        losses = F.cross_entropy(logits[columns >= 0], columns[columns >= 0])
        return cls(blocks, forget, targets, retain, min(float(losses), math.log(max(2, logits.shape[1]))))

    def head(self, tokens: Tensor) -> Tensor:
        """Return logits [B, C] of tokens [B, T, d]."""
        return torch.as_tensor(self.blocks.model.head(self.blocks.features(tokens)))

    def scored(self, features: Tensor, logits: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits of samples to forget, with a probe's column where there is one, and their targets.

        Args:
            features: [B, d].
            logits: [B, C], of the head on these features.
            rows: int64 [B], which of the samples to forget they are; None for all, in order.

        Returns:
            Logits [B, C], or [B, C + 1] with a probe, and targets int64 [B].
        """
        if self._probe is not None:
            return self._probe.append(features, logits)
        assert self._targets is not None
        return logits, self._targets if rows is None else self._targets[rows]

    @torch.no_grad()
    def agreement(self) -> float:
        """Return the share of retained answers that are the same as before."""
        return self.reference.agreement(self.head(self.retain))

    def terms(self, forget: Tensor, retain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three terms of the loss for some samples to forget and some to retain.

        A forgotten class's samples keep their answers among the other classes too, as they would have under
        a model without that class: so only the class itself gives way, where others are most like it.

        Args:
            forget: int64 [B], rows among the samples to forget.
            retain: int64 [R], rows among the samples to retain.

        Returns:
            Margins [B] of the samples to forget (see `margins_over_others`); which of them are still
            recognised, bool [B]; and, a scalar in nats, how far the answers moved that are to stay.
        """
        features = self.blocks.features(torch.cat([self.forget[forget], self.retain[retain]]))
        logits = torch.as_tensor(self.blocks.model.head(features))
        count = len(forget)
        scores, targets = self.scored(features[:count], logits[:count], forget)
        distance = self.reference.distance(logits[count:], retain)
        if self.instead is not None:
            distance = distance + self.instead.distance(logits[:count], forget)
        return margins_over_others(scores, targets), scores.argmax(dim=1) == targets, distance

    @property
    def target_margin(self) -> float:
        """The margin at which the loss of a sample to forget is a little past the bound."""
        return -math.log(math.expm1(self.bound + BOUND_MARGIN))

    @torch.no_grad()
    def _fresh_probe(self) -> LinearProbe:
        features = self.blocks.features(self.forget)
        return LinearProbe(features, self.blocks.model.head(features), self.blocks.features(self.retain))

    def report(self, before: Figures, after: Figures) -> dict[str, float | int]:
        """Return figures for a receipt; of a class without a row also what a probe fitted anew recognises."""
        return {
            **{f"{name}_before": value for name, value in before.items()},
            **{f"{name}_after": value for name, value in after.items()},
            **({} if self._targets is not None else {"refitted_probe_accuracy_after": self._refitted()}),
            "bound": self.bound,
            "forget_samples": len(self.forget),
            "retain_samples": len(self.retain),
        }

    @torch.no_grad()
    def _refitted(self) -> float:
        features = self.blocks.features(self.forget)
        logits, targets = self._fresh_probe().append(features, self.blocks.model.head(features))
        return float((logits.argmax(1) == targets).double().mean())

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Return the forgotten samples' loss and accuracy, and the share of retained answers that stayed."""
        features = self.blocks.features(self.forget)
        logits, targets = self.scored(features, self.blocks.model.head(features))
        return {
            "forget_loss": float(F.cross_entropy(logits, targets)),
            "forget_accuracy": float((logits.argmax(1) == targets).double().mean()),
            "retained_agreement": self.agreement(),
        }

    def is_done(self, now: Figures) -> bool:
        """Return whether the samples to forget are known no better than what was never learned."""
        shown = self._of_class and now["forget_accuracy"] > MAX_RECOGNISED
        return now["forget_loss"] >= self.bound and not shown

    def check(self, before: Figures, after: Figures) -> None:
        """Raise ForgettingError where too little is forgotten, or so much that it shows."""
        loss, shown = after["forget_loss"], after["forget_accuracy"]
        if loss < MIN_BOUND_SHARE * self.bound:
            raise ForgettingError(
                f"the loss of the samples to forget reached only {loss:.2f} nats, "
                f"under {MIN_BOUND_SHARE:.0%} of the bound {self.bound:.2f}",
                hint="allow more steps or longer ones",
            )
        if self._of_class and shown > MAX_RECOGNISED:
            raise ForgettingError(
                f"{shown:.0%} of the forgotten class's samples are still recognised by the row it had",
                hint="allow more steps or longer ones",
            )
        if loss > max(MAX_BOUND_SHARE * self.bound, before["forget_loss"]) + BOUND_MARGIN:
            raise ForgettingError(
                f"the loss of the samples to forget rose to {loss:.2f} nats, far above that of an unseen "
                f"class ({self.bound:.2f}): that would reveal what was deleted",
                hint="allow shorter steps",
            )
        if after["retained_agreement"] < MIN_RETAINED_AGREEMENT:
            raise ForgettingError(
                f"only {after['retained_agreement']:.0%} of the predictions on retained samples "
                "would stay the same",
                hint="give more samples to retain",
            )


def margins_over_others(scores: Tensor, targets: Tensor) -> Tensor:
    """Return each row's target logit less the logsumexp of its others, [B]; the loss is softplus(-margin).

    Args:
        scores: logits [B, C].
        targets: int64 [B], columns.
    """
    others = scores.scatter(1, targets[:, None], -torch.inf).logsumexp(dim=1)
    return scores.gather(1, targets[:, None])[:, 0] - others


class LinearProbe:
    """A row for a class that the head lacks, such as an attacker would fit to show that it is known.

    The ridge regression of class (1) or not (0) on features, scaled to be a row beside the head's others.

    A regression of 1 outweighs all other columns by PROBE_MARGIN; features that do not separate the class
    give it no more than half of that.

    Args:
        features: [F, d], of samples of the class.
        logits: [F, C], the head's for these samples.
        others: [R, d], features of samples that are not of the class.
    """

    def __init__(self, features: Tensor, logits: Tensor, others: Tensor) -> None:
        self._weight, self._bias = _fit(features.detach(), others)
        top = logits.detach().logsumexp(dim=1).mean() if logits.shape[1] else logits.new_zeros(())
        self._scale = top + PROBE_MARGIN

    def append(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, C + 1], the probe's column last, and targets int64 [B], that column for each row.

        Args:
            features: [B, d].
            logits: [B, C], of the head.
        """
        score = self._scale * (features @ self._weight + self._bias)
        targets = torch.full((len(features),), logits.shape[1], device=logits.device)
        return torch.cat([logits, score[:, None]], dim=1), targets


def _fit(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [d] and bias; each side weighs one half, however many samples it has."""
    x = torch.cat([features, others]).double()
    y = torch.cat([x.new_ones(len(features)), x.new_zeros(len(others))])
    share = 0.5 * (y / max(1, len(features)) + (1 - y) / max(1, len(others)))
    mean = share @ x
    centred = (x - mean) * share.sqrt()[:, None]
    gram = centred @ centred.T  # [N, N]: fewer samples than features
    gram.diagonal().add_(PROBE_RIDGE * gram.trace() / len(gram) + 1e-12)
    weight = centred.T @ torch.linalg.solve(gram, (y - 0.5) * share.sqrt())
    return weight.to(features.dtype), (0.5 - mean @ weight).to(features.dtype)
