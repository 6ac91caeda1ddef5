"""GS-LoRA (arXiv 2403.11530): group-sparse low-rank changes of the FFNs make adapted blocks forget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee, Sample
from streamcl.forgetting.ffn_lora import Block, attached, fold, refusal
from streamcl.forgetting.groups import ProximalDescent
from streamcl.forgetting.probe import Probe
from streamcl.forgetting.protocol import Context, Evidence
from streamcl.forgetting.repair import Blocks, Repairable, close, opened, rounded, to_forget, unfit
from streamcl.forgetting.retain import FEWEST, Answers, Retain, kept_columns, missing, retained

ENOUGH = 0.75
"""Share of the bound that the forgotten samples' loss must reach, or the erasure counts as failed."""

BEYOND = 0.5
"""Nats past the bound that the samples at hand are aimed at, as those not at hand follow less far."""

INTACT = 0.75
"""Share of retained answers that must stay the same, or the erasure counts as failed."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How hard and how long GS-LoRA works.

    rank: of each update. steps: of descent. length: of the first step, over all groups together. sparsity:
    the penalty's weight, as a share of the largest gradient; a group whose gradient's share stays below it
    ends at exactly zero. beta: weight of forgetting against keeping. forget, retain: samples looked at in
    all; batch: of each in a step.
    """

    rank: int = 8
    steps: int = 16
    length: float = 4.0
    sparsity: float = 0.05
    beta: float = 0.3
    forget: int = 64
    retain: int = 128
    batch: int = 12


class GSLoRA:
    """Loss = beta |CE_forget - bound| + KL(answers before, now) on retained samples + group penalty.

    One group a block: what is learned on both of its FFN linears. The penalty is a proximal step, so groups
    reach exactly zero, and such blocks stay the backbone's own. The bound is the loss of an unseen class,
    ln C, for a class; for samples and subjects the loss of retained samples, which is why those must have
    labels then. The paper's ReLU(bound - CE) lets the loss run past the bound (6.5 nats at ln C = 3.0 were
    seen), which shows what was deleted; the distance of each sample's loss from the bound draws it back. The
    head is not trained: what is forgotten is gone from the features.
    A class that the stream never taught is given a probe row, fitted once; what a probe fitted anew on the
    same samples would still recognise is told beside it.
    The paper's bound of over 100 nats would be a beacon, and its plain gradient of a norm never reaches zero.

    retain: brings samples to hold on to (see streamcl.forgetting.retain); None leaves the hard buffer.
    """

    name = "gs_lora"
    guarantee: Guarantee = "approximate"

    def __init__(self, retain: Retain | None = None, strength: Strength | None = None) -> None:
        self._retain = retain
        self._strength = strength or Strength()

    def can(self, request: ForgetRequest, context: Context) -> str | None:
        """Adapted blocks with plain FFNs, samples of what is to go, and samples to hold on to."""
        if reason := unfit(request, context):
            return reason
        learner = context.learner
        assert isinstance(learner, Repairable)
        assert learner.model.adapters is not None
        return refusal(learner.model.adapters) or missing(self._retain, request, context)

    def erase(self, request: ForgetRequest, context: Context) -> Evidence:
        """Change the FFNs, fold the change into the learner's own weights, drop the class and what is kept.

        Raises ForgettingError, with the weights as they were, where the samples are not forgotten enough or
        too much else is.
        """
        opened_blocks, strength = opened(context), self._strength
        forgotten = to_forget(request, context, strength.forget)
        others = retained(self._retain, request, context, forgotten, strength.retain)
        task = Task.of(opened_blocks, request, forgotten, others)
        generator = torch.Generator().manual_seed(0)  # a repetition after a crash comes to the same weights
        before = task.figures("before")
        with attached(opened_blocks.adapters, strength.rank, generator) as blocks:
            if before["forget_loss_before"] < task.bound:
                descend(task, blocks, strength, generator)
            else:
                still(blocks)
            after = task.figures("after")
            task.check(after)
            after |= task.refitted()
        changed = fold(opened_blocks.adapters, blocks)
        figures = {
            **before,
            **after,
            "bound": task.bound,
            "blocks": len(blocks),
            "blocks_changed": changed,
            "groups_at_zero": len(blocks) - changed,
            "forget_samples": len(forgotten),
            "retain_samples": len(task.retain),
        }
        what = (
            f"repaired, not retrained: FFN weights of {changed} of {len(blocks)} blocks changed, folded in; "
            "what gradients left in qkv stays beneath"
        )
        places = close(request, context, what, repaired=True)
        return Evidence(self.name, self.guarantee, RESIDUAL, places, rounded(figures))


RESIDUAL = (
    "The samples no longer show in the answers, but shared weights that they trained were repaired and not "
    "retrained: whoever holds the weights may find traces or relearn faster than from nothing."
)


class Task:
    """What is to be forgotten and what kept, as tokens that enter the adapted blocks."""

    def __init__(
        self, blocks: Blocks, forget: Tensor, targets: Tensor | None, retain: Tensor, bound: float | None
    ) -> None:
        """targets: columns [F] of the forgotten samples; None where the class has no row in the head."""
        self._blocks, self.forget, self._targets = blocks, forget, targets
        with torch.no_grad():
            logits = self.head(retain)
        column = int(targets[0]) if targets is not None and bound is None else None
        mine = logits.argmax(1) == (-1 if column is None else column)
        self.retain = retain[~mine]  # what the model itself takes for the class is no help to keep
        self.answers = Answers(logits[~mine], kept_columns(logits.shape[1], column))
        self._probe = None if targets is not None else self._fresh_probe()
        self.bound = math.log(max(2, logits.shape[1] + (targets is None))) if bound is None else bound

    @classmethod
    def of(
        cls, blocks: Blocks, request: ForgetRequest, forgotten: Sequence[Sample], others: Sequence[Sample]
    ) -> Task:
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
        return torch.as_tensor(self._blocks.model.head(self._blocks.features(tokens)))

    def forget_losses(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy [B] of forgotten samples, and whether each is still recognised."""
        tokens = self.forget if rows is None else self.forget[rows]
        features = self._blocks.features(tokens)
        logits = self._blocks.model.head(features)
        if self._probe is not None:
            logits, targets = self._probe.beside(features, logits)
        else:
            assert self._targets is not None
            targets = self._targets if rows is None else self._targets[rows]
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(1) == targets

    def distance(self, rows: Tensor) -> Tensor:
        """How far the answers for some retained samples are from those before."""
        return self.answers.distance(self.head(self.retain[rows]), rows)

    @torch.no_grad()
    def _fresh_probe(self) -> Probe:
        features = self._blocks.features(self.forget)
        return Probe(features, self._blocks.model.head(features), self._blocks.features(self.retain))

    @torch.no_grad()
    def refitted(self) -> dict[str, float]:
        """For a class without a row: the share that a probe fitted anew to these samples recognises."""
        if self._targets is not None:
            return {}
        features = self._blocks.features(self.forget)
        logits, targets = self._fresh_probe().beside(features, self._blocks.model.head(features))
        return {"refitted_probe_accuracy_after": float((logits.argmax(1) == targets).double().mean())}

    @torch.no_grad()
    def figures(self, when: str) -> dict[str, float]:
        """The forgotten samples' loss and accuracy, and the share of retained answers that are the same."""
        losses, hits = self.forget_losses()
        return {
            f"forget_loss_{when}": float(losses.mean()),
            f"forget_accuracy_{when}": float(hits.double().mean()),
            f"retained_agreement_{when}": self.answers.agreement(self.head(self.retain)),
        }

    def check(self, after: dict[str, float]) -> None:
        """Refuse what did not come to be."""
        if after["forget_loss_after"] < ENOUGH * self.bound:
            raise ForgettingError(
                f"the loss of what was to be forgotten came to {after['forget_loss_after']:.2f} nats, "
                f"under {ENOUGH:.0%} of the bound {self.bound:.2f}",
                hint="allow more steps or longer ones",
            )
        if after["retained_agreement_after"] < INTACT:
            raise ForgettingError(
                f"only {after['retained_agreement_after']:.0%} of the retained answers would stay the same",
                hint="give more samples to hold on to, or a smaller beta",
            )


def descend(task: Task, blocks: Sequence[Block], strength: Strength, generator: torch.Generator) -> None:
    """Descend with a length that falls like a cosine; each step ends with the proximal one of its length."""
    parameters = [p for block in blocks for p in block.group]
    descent = ProximalDescent([block.group for block in blocks])
    size = len(blocks[0].group)
    pairs = zip(
        draws(len(task.forget), strength, generator),
        draws(len(task.retain), strength, generator),
        strict=True,
    )
    for number, (forget, retain) in enumerate(pairs):
        losses, _ = task.forget_losses(forget)
        aim = torch.full_like(losses, task.bound + BEYOND)
        loss = strength.beta * F.smooth_l1_loss(losses, aim) + task.distance(retain)
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients = [found[i : i + size] for i in range(0, len(found), size)]
        fall = 0.5 * (1 + math.cos(math.pi * number / strength.steps))
        length = strength.length * fall
        descent.step(gradients, length, strength.sparsity * length)


def draws(count: int, strength: Strength, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one step after another: every row comes once before any comes again."""
    waiting = torch.zeros(0, dtype=torch.int64)
    for _ in range(strength.steps):
        while len(waiting) < min(strength.batch, count):
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[: strength.batch]
        waiting = waiting[strength.batch :]


@torch.no_grad()
def still(blocks: Sequence[Block]) -> None:
    """Leave every block as it is: what is to be forgotten is not remembered."""
    for block in blocks:
        for parameter in block.group:
            parameter.zero_()
