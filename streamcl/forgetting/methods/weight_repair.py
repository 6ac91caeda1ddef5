"""Repair of shared weights: its preconditions, the blocks that it changes, its locations, Adam's moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.capabilities.interfaces import GradientModel, ParameterImportance
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.methods.protocol import (
    CANNOT_DROP,
    Context,
    DataLocation,
    cannot_drop,
    drop_class,
    not_affected,
    purge,
)
from streamcl.forgetting.methods.retain_set import subsample
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import LoRALinear

NO_BLOCKS = "this learner has no adapted blocks trained by gradient"

BATCHES, SIZE = 2, 32
"""Gradients that the moments are the mean of, and samples in each."""


class RepairableBlocks:
    """The last adapted blocks of a model; those before them stay, and are computed once a sample.

    last: how many; all that are adapted where there are fewer.
    """

    def __init__(self, model: GradientModel, adapters: Adapters, last: int) -> None:
        self.model, self.adapters = model, adapters
        self.first_block = max(adapters.first_block, model.backbone.depth - last)
        before = self.first_block - adapters.first_block
        self._blocks = list(adapters.blocks)[before:]
        self.names: tuple[str, ...] = adapters.block_names[before:]
        self.layers: list[LoRALinear] = adapters.layers[before:]

    def entering(self, samples: Sequence[Sample], chunk: int = 64) -> Tensor:
        """Return the tokens [N, T, d] of N samples that enter the first of the blocks."""
        backbone, parts = self.model.backbone, []
        first = self.adapters.first_block
        with torch.no_grad(), self.model.compute.autocast():
            for start in range(0, len(samples), chunk):
                images = [sample.image for sample in samples[start : start + chunk]]
                tokens = backbone.stem(backbone.prepare(images))
                tokens = [tokens, *backbone.run(tokens, 0, first)][-1]
                adapted = backbone.run(tokens, first, self.first_block, list(self.adapters.blocks))
                parts.append([tokens, *adapted][-1])
        return torch.cat(parts)

    def features(self, tokens: Tensor) -> Tensor:
        """Return float32 [N, width] of those tokens [N, T, d], with gradients to the blocks' parameters."""
        with self.model.compute.autocast():
            return self.model.backbone.forward_head(tokens, self.first_block, self._blocks)


def unrepairable_reason(request: ForgetRequest, context: Context) -> str | None:
    """Return why this learner's shared weights cannot be repaired for the request; None where they can."""
    model = context.capabilities.gradient_model
    if model is None or model.adapters is None:
        return NO_BLOCKS
    if cannot_drop(request, context):
        return CANNOT_DROP
    if context.scope.learned and context.unavailable is not None:
        return context.unavailable
    if not context.scope.learned and not request.samples:
        return "no sample in scope was learned, and the request carries none to forget"
    return None


def repairable_blocks(context: Context, last: int) -> RepairableBlocks:
    """Return the learner's last adapted blocks. Raise ForgettingError where it has none."""
    model = context.capabilities.gradient_model
    if model is None or model.adapters is None:
        raise ForgettingError(NO_BLOCKS)
    return RepairableBlocks(model, model.adapters, last)


def samples_to_forget(request: ForgetRequest, context: Context, limit: int) -> list[Sample]:
    """Return at most `limit` samples, evenly over those learned; where none was, those that are carried."""
    rows = [row for chunk in context.scope.chunks() for row in chunk]
    if rows:
        return list(context.samples(subsample(rows, limit)))
    if not request.samples:
        raise ForgettingError("no sample in scope was learned, and the request carries none")
    return subsample(request.samples, limit)


def finish_repair(
    request: ForgetRequest, context: Context, others: Sequence[Sample], adapters: str
) -> tuple[DataLocation, ...]:
    """Drop the class, purge stored samples, clear importance, derive the moments again from other samples.

    adapters: says what was done to them. Return what was done in each location.
    """
    model = context.capabilities.gradient_model
    assert model is not None
    head = DataLocation("head statistics", "remains", "rows that the samples helped to train")
    if drop_class(request, context):
        head = DataLocation("head statistics", "erased", "its row is gone")
    stored = purge(request, context)
    moments = f"dropped, and derived again from {derive_moments(model, others)} retained samples"
    return (
        head,
        DataLocation("adapters", "remains", adapters),
        DataLocation("optimizer moments", "erased", moments),
        *_clear_importance(context.capabilities.importance),
        *stored,
    )


def _clear_importance(importance: ParameterImportance | None) -> tuple[DataLocation, ...]:
    if importance is None:
        return not_affected(("importance",), "there are no importance weights")
    if importance.consolidations == 0:
        return not_affected(("importance",), "nothing has been consolidated")
    importance.clear()
    anew = "set to zero; it is estimated anew at the next consolidation"
    return (DataLocation("importance", "erased", anew),)


def rounded(figures: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return figures for a receipt: counts as they are, the rest to six significant digits."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in figures.items()
    }


def derive_moments(model: GradientModel, samples: Sequence[Sample]) -> int:
    """Replace the optimizer's moments by those of `samples` alone; return how many of them were used.

    Without any, Adam's next steps are as long as its rate in every weight, and what was never forgotten was
    measured to move as far as what was. The second moment of a weight is the mean square of its gradient over
    batches of retained samples, its tensor's mean counted as one batch more, so that a weight no sample
    reached takes no long step either; the first is zero. The count of steps stays: it says nothing of a
    sample. Labels are drawn from the model's own outputs (the squared gradients are those of the Fisher
    information), since labels of coming samples are not learned from. An optimizer without such moments gets
    none.
    """
    steps = _steps(model.optimizer)
    model.optimizer.state.clear()
    if steps is None or not samples or not model.classes:
        return 0
    used = subsample(samples, BATCHES * SIZE)
    count = -(-len(used) // SIZE)
    batches = [used[first::count] for first in range(count)]  # each from the whole stream
    generator = torch.Generator().manual_seed(0)  # a repetition after a crash comes to the same moments
    parameters = list(model.parameters().values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        for square, gradient in zip(squares, _gradients(model, batch, parameters, generator), strict=True):
            square.addcmul_(gradient, gradient)
    for parameter, square in zip(parameters, squares, strict=True):
        level = square.mean() / count
        model.optimizer.state[parameter] = {
            "step": steps.clone(),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": (square + level) / (count + 1),
        }
    return len(used)


def _steps(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return the largest number of steps of Adam's moments; None where there are none."""
    states: list[dict[str, Any]] = list(optimizer.state.values())
    counts = [state["step"] for state in states if "exp_avg_sq" in state]
    return max(counts, key=float).detach() if counts else None


def _gradients(
    model: GradientModel, samples: Sequence[Sample], parameters: list[Any], generator: torch.Generator
) -> tuple[Tensor, ...]:
    logits: Tensor = model.head(model.features(samples))
    shares = logits.detach().float().softmax(dim=1).cpu()
    drawn = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
    loss = F.cross_entropy(logits, drawn)
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
