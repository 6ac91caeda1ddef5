"""GS-LoRA (arXiv 2403.11530): group-sparse low-rank changes of the FFNs make adapted blocks forget."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.methods.ffn_lora import FFNBlock, attached, fold, refusal
from streamcl.forgetting.methods.objective import BEACON, BEYOND, SHOWN, ForgetObjective
from streamcl.forgetting.methods.protocol import Context, ErasureResult
from streamcl.forgetting.methods.proximal import ProximalDescent
from streamcl.forgetting.methods.retain_set import Retain, missing, retained
from streamcl.forgetting.methods.weight_repair import close, opened, rounded, to_forget, unfit

STUBBORN = 2.0
"""Weight of a sample that is still recognised; without it a class ends with a few that never gave way."""


@dataclass(frozen=True, slots=True)
class GSLoRAOptions:
    """How hard and how long GS-LoRA works.

    blocks: the last so many adapted blocks can change. rank: of each update. steps: of descent, at most.
    length: of the first step, over all groups together. sparsity: the penalty's weight, as a share of the
    largest gradient; a group whose gradient's share stays below it ends at exactly zero. beta: weight of
    forgetting against keeping at the first step, twice as much every `doubling` steps, because what was
    learned well does not give way to a weight that spares the rest where little was. forget, retain: samples
    looked at in all; batch, keep: of each in a step.
    """

    blocks: int = 1
    rank: int = 16
    steps: int = 48
    length: float = 2.5
    sparsity: float = 0.05
    beta: float = 0.07
    doubling: int = 6
    forget: int = 64
    retain: int = 256
    batch: int = 16
    keep: int = 32


class GSLoRA:
    """Loss = beta |CE_forget - bound| + KL(answers before, now) + group penalty, on the last blocks' FFNs.

    Only the last adapted block changes by default: what enters it is computed once a sample, so a step costs
    a fraction of one through the model, and the steps end as soon as the class is forgotten. One group a
    block: what is learned on both of its FFN linears. The penalty is a proximal step, so groups reach exactly
    zero, and such blocks stay the backbone's own.
    The answers that are kept are those among the classes that stay, of retained samples and of the forgotten
    class's own: whatever resembles it is answered as under a model without its row. Without the second, other
    classes lost 1 to 4 points a request on real photos. The head is not trained.
    The bound is the loss of an unseen class (see Task). The paper's, over 100 nats, would be a beacon, its
    ReLU(bound - CE) lets the loss run on past any bound, where the distance from it draws the loss back, and
    its plain gradient of a norm never reaches zero.
    A class that the stream never taught is given a probe row, fitted once; what a probe fitted anew on the
    same samples would still recognise is told beside it.

    retain: brings samples to hold on to (see `retain_set`); None takes what the run gives, and
    the hard buffer.
    """

    name = "gs_lora"
    guarantee: Guarantee = "approximate"
    cost = 50

    def __init__(self, retain: Retain | None = None, strength: GSLoRAOptions | None = None) -> None:
        self._retain = retain
        self._strength = strength or GSLoRAOptions()

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Adapted blocks with plain FFNs, samples of what is to go, and samples to hold on to."""
        if reason := unfit(request, context):
            return reason
        blocks = opened(context, self._strength.blocks)
        return refusal(blocks.adapters) or missing(self._retain, request, context)

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Change the FFNs, fold the change into the learner's own weights, drop the class and what is kept.

        Raises ForgettingError, with the weights as they were, where the samples are not forgotten enough or
        too much else is.
        """
        strength = self._strength
        opened_blocks = opened(context, strength.blocks)
        forgotten = to_forget(request, context, strength.forget)
        others = retained(self._retain, request, context, forgotten, strength.retain)
        task = ForgetObjective.of(opened_blocks, request, forgotten, others)
        generator = torch.Generator().manual_seed(0)  # a repetition after a crash comes to the same weights
        before, taken = task.figures(), 0
        with attached(opened_blocks.adapters, opened_blocks.names, strength.rank, generator) as blocks:
            if not task.is_done(before):
                taken = descend(task, blocks, strength, generator)
            else:
                still(blocks)
            after = task.figures()
            task.check(before, after)
            told = task.told(before, after)
        changed = fold(opened_blocks.adapters, blocks)
        figures = {
            **told,
            "steps": taken,
            "blocks": len(blocks),
            "blocks_changed": changed,
            "groups_at_zero": len(blocks) - changed,
        }
        what = (
            f"repaired, not retrained: FFN weights of {changed} of {len(blocks)} blocks changed, folded in; "
            "what gradients left in qkv stays beneath"
        )
        places = close(request, context, others, what)
        return ErasureResult(self.name, self.guarantee, RESIDUAL, places, rounded(figures))


RESIDUAL = (
    "The samples no longer show in the answers, but shared weights that they trained were repaired and not "
    "retrained: whoever holds the weights may find traces or relearn faster than from nothing."
)


def descend(
    task: ForgetObjective, blocks: Sequence[FFNBlock], strength: GSLoRAOptions, generator: torch.Generator
) -> int:
    """Descend with a length that falls like a cosine, each step ended by the proximal one of its length.

    Ends, with the number of steps, when every forgotten sample has been seen to be forgotten.
    """
    parameters = [p for block in blocks for p in block.group]
    descent = ProximalDescent([block.group for block in blocks])
    size = len(blocks[0].group)
    a_round = math.ceil(len(task.forget) / strength.batch)
    seen: deque[tuple[float, int]] = deque(maxlen=a_round)  # of each step: mean loss, samples recognised
    rows = (len(task.forget), strength.batch), (len(task.retain), strength.keep)
    drawn = [draws(count, size, strength.steps, generator) for count, size in rows]
    for number, (forget, retain) in enumerate(zip(*drawn, strict=True)):
        losses, shown, distance = task.terms(forget, retain)
        seen.append((float(losses.detach().mean()), int(shown.sum())))
        if number >= a_round and _done(task, seen) and _all_done(task):
            return number
        aim = torch.full_like(losses, task.bound + BEYOND)
        short = F.smooth_l1_loss(losses, aim, reduction="none") * torch.where(shown, STUBBORN, 1.0)
        beta = strength.beta * 2 ** (number / strength.doubling)
        loss = beta * short.mean() + distance
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients = [found[i : i + size] for i in range(0, len(found), size)]
        fall = 0.5 * (1 + math.cos(math.pi * number / strength.steps))
        length = strength.length * fall
        descent.step(gradients, length, strength.sparsity * length)
    return strength.steps


def _done(task: ForgetObjective, seen: deque[tuple[float, int]]) -> bool:
    losses, shown = zip(*seen, strict=True)
    mean = sum(losses) / len(losses)
    return bool(task.bound <= mean <= BEACON * task.bound and sum(shown) <= 1)  # one may be mislabelled


def _all_done(task: ForgetObjective) -> bool:
    """Whether it is so for all at once: later steps may have brought back what earlier ones saw go."""
    now = task.figures()
    return task.is_done(now) and now["forget_accuracy"] <= SHOWN / 2


def draws(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one step after another: every row comes once before any comes again."""
    waiting = torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < min(size, count):
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


@torch.no_grad()
def still(blocks: Sequence[FFNBlock]) -> None:
    """Leave every block as it is: what is to be forgotten is not remembered."""
    for block in blocks:
        for parameter in block.group:
            parameter.zero_()
