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
from streamcl.forgetting.methods.linear_probe import LinearProbe
from streamcl.forgetting.methods.retain_set import FEWEST, ReferenceOutputs, kept_columns
from streamcl.forgetting.methods.weight_repair import RepairableBlocks

ENOUGH = 0.75
"""Share of the bound that the forgotten samples' loss must reach, or the erasure counts as failed."""

SHOWN = 0.1
"""Share of a forgotten class's samples that may still be recognised by the row that it had."""

BEACON = 2.0
"""Times the bound past which a loss tells what was deleted, and the erasure counts as failed."""

INTACT = 0.75
"""Share of retained answers that must stay the same, or the erasure counts as failed."""

BEYOND = 0.3
"""Nats past the bound that the samples at hand are aimed at, as those not at hand follow less far."""


Figures: TypeAlias = Mapping[str, float]
"""See `ForgetObjective.figures`."""


class ForgetObjective:
    """Samples to forget and samples to retain.

    A class is judged by the row of the head that it had, which whoever kept a copy may put back; one that
    the stream never taught by a probe row, fitted once. `instead` is how its samples were answered among the
    classes that stay; None for samples and subjects, whose classes stay. The bound is the loss of an unseen
    class, ln C, for a class; for samples and subjects the loss of retained samples, which is why those must
    have labels then.
    """

    def __init__(
        self,
        blocks: RepairableBlocks,
        forget: Tensor,
        targets: Tensor | None,
        retain: Tensor,
        bound: float | None,
    ) -> None:
        """targets: columns [F] of the forgotten samples; None where the class has no row in the head."""
        self.blocks, self.forget, self._targets = blocks, forget, targets
        self._of_class = bound is None
        self.retain = retain
        with torch.no_grad():
            logits = self.head(retain)
            own = self.head(forget)
        column = int(targets[0]) if targets is not None and bound is None else None
        self.kept = kept_columns(logits.shape[1], column)
        self.answers = ReferenceOutputs(logits, self.kept)
        self.instead = ReferenceOutputs(own, self.kept) if bound is None else None
        self._probe = None if targets is not None else self._fresh_probe()
        self.bound = math.log(max(2, logits.shape[1] + (targets is None))) if bound is None else bound

    @classmethod
    def of(
        cls,
        blocks: RepairableBlocks,
        request: ForgetRequest,
        forgotten: Sequence[Sample],
        others: Sequence[Sample],
    ) -> ForgetObjective:
        """The task of a request."""
        retain = blocks.entering(others)
        forget = blocks.entering(forgotten)
        targets = blocks.model.targets(forgotten)
        if request.kind == "class":
            known = bool((targets >= 0).all())
            return cls(blocks, forget, targets if known else None, retain, None)
        columns = blocks.model.targets(others)
        if int((columns >= 0).sum()) < FEWEST:
            raise ForgettingError(
                f"fewer than {FEWEST} retained samples have labels: what unlearned samples cost is not known",
                hint="give labelled samples to hold on to",
            )
        with torch.no_grad():
            logits = blocks.model.head(blocks.features(retain))
        losses = F.cross_entropy(logits[columns >= 0], columns[columns >= 0])
        return cls(blocks, forget, targets, retain, min(float(losses), math.log(max(2, logits.shape[1]))))

    def head(self, tokens: Tensor) -> Tensor:
        """Logits [B, C] of tokens."""
        return torch.as_tensor(self.blocks.model.head(self.blocks.features(tokens)))

    def scored(self, features: Tensor, logits: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of forgotten samples, a probe's column beside the head's, and the column of each's class."""
        if self._probe is not None:
            return self._probe.beside(features, logits)
        assert self._targets is not None
        return logits, self._targets if rows is None else self._targets[rows]

    @torch.no_grad()
    def agreement(self) -> float:
        """The share of retained answers that are the same as before."""
        return self.answers.agreement(self.head(self.retain))

    def terms(self, forget: Tensor, retain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [B] of some forgotten samples, which are recognised, and how far answers moved, in nats.

        A forgotten class's samples keep their answers among the other classes too, as they would have under
        a model without that class: so only the class itself gives way, where others are most like it.
        """
        features = self.blocks.features(torch.cat([self.forget[forget], self.retain[retain]]))
        logits = torch.as_tensor(self.blocks.model.head(features))
        count = len(forget)
        scores, targets = self.scored(features[:count], logits[:count], forget)
        distance = self.answers.distance(logits[count:], retain)
        if self.instead is not None:
            distance = distance + self.instead.distance(logits[:count], forget)
        losses = F.cross_entropy(scores, targets, reduction="none")
        return losses, scores.argmax(dim=1) == targets, distance

    @torch.no_grad()
    def _fresh_probe(self) -> LinearProbe:
        features = self.blocks.features(self.forget)
        return LinearProbe(features, self.blocks.model.head(features), self.blocks.features(self.retain))

    def told(self, before: Figures, after: Figures) -> dict[str, float | int]:
        """Return figures for a receipt; of a class without a row also what a probe fitted anew recognises."""
        return {
            **{f"{name}_before": value for name, value in before.items()},
            **{f"{name}_after": value for name, value in after.items()},
            **self._refitted(),
            "bound": self.bound,
            "forget_samples": len(self.forget),
            "retain_samples": len(self.retain),
        }

    @torch.no_grad()
    def _refitted(self) -> dict[str, float]:
        if self._targets is not None:
            return {}
        features = self.blocks.features(self.forget)
        logits, targets = self._fresh_probe().beside(features, self.blocks.model.head(features))
        return {"refitted_probe_accuracy_after": float((logits.argmax(1) == targets).double().mean())}

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The forgotten samples' loss and accuracy, and the share of retained answers that are the same."""
        features = self.blocks.features(self.forget)
        logits, targets = self.scored(features, self.blocks.model.head(features))
        return {
            "forget_loss": float(F.cross_entropy(logits, targets)),
            "forget_accuracy": float((logits.argmax(1) == targets).double().mean()),
            "retained_agreement": self.agreement(),
        }

    def is_done(self, now: Figures) -> bool:
        """Whether what is to be forgotten is remembered no better than what was never learned."""
        shown = self._of_class and now["forget_accuracy"] > SHOWN
        return now["forget_loss"] >= self.bound and not shown

    def check(self, before: Figures, after: Figures) -> None:
        """Refuse what did not come to be, on either side: too little forgotten, or so much that it shows."""
        loss, shown = after["forget_loss"], after["forget_accuracy"]
        if loss < ENOUGH * self.bound:
            raise ForgettingError(
                f"the loss of what was to be forgotten came to {loss:.2f} nats, "
                f"under {ENOUGH:.0%} of the bound {self.bound:.2f}",
                hint="allow more steps or longer ones",
            )
        if self._of_class and shown > SHOWN:
            raise ForgettingError(
                f"{shown:.0%} of the forgotten class's samples are still recognised by the row it had",
                hint="allow more steps or longer ones",
            )
        if loss > max(BEACON * self.bound, before["forget_loss"]) + BEYOND:
            raise ForgettingError(
                f"the loss of what was to be forgotten rose to {loss:.2f} nats, far past that of an unseen "
                f"class ({self.bound:.2f}): that would show what was deleted",
                hint="allow shorter steps",
            )
        if after["retained_agreement"] < INTACT:
            raise ForgettingError(
                f"only {after['retained_agreement']:.0%} of the retained answers would stay the same",
                hint="give more samples to hold on to",
            )
