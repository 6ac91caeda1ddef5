"""Adam's second moments after a repair: derived again from retained samples, so that no step is a leap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.capabilities.interfaces import GradientModel
from streamcl.events import Sample
from streamcl.forgetting.methods.subsample import subsample

BATCHES, SIZE = 2, 32
"""Gradients that the moments are the mean of, and samples in each."""


def derive_moments(model: GradientModel, samples: Sequence[Sample]) -> int:
    """Replace the optimizer's moments by ones that only `samples` shaped; how many of them were looked at.

    Without any, Adam's next steps are as long as its rate in every weight, and what was never forgotten was
    measured to move as far as what was. The second moment of a weight is the mean square of its gradient over
    batches of retained samples, its tensor's mean counted as one batch more, so that a weight no sample
    reached does not leap either; the first is zero. The count of steps stays: it holds nothing of a sample.
    The answers are drawn from the model's own, whose squared gradients are those of the Fisher information,
    as labels of coming samples are not learned from. An optimizer that keeps no such moments gets none.
    """
    steps = _steps(model.optimizer)
    model.optimizer.state.clear()
    if steps is None or not samples or not model.classes:
        return 0
    looked_at = subsample(samples, BATCHES * SIZE)
    count = -(-len(looked_at) // SIZE)
    batches = [looked_at[first::count] for first in range(count)]  # each from the whole stream
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
    return len(looked_at)


def _steps(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """How many steps the moments have had, the most of any; None where they are not Adam's, or none."""
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
