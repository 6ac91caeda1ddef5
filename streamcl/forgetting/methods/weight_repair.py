"""Repair of shared weights: its preconditions, the blocks that it changes, and its data locations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from streamcl.capabilities.interfaces import GradientModel, ParameterImportance
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.methods.adam_moments import derive_moments
from streamcl.forgetting.methods.protocol import (
    CANNOT_DROP,
    Context,
    DataLocation,
    LineageRow,
    cannot_drop,
    drop_class,
    purge,
)
from streamcl.forgetting.methods.subsample import subsample
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import LoRALinear

NO_BLOCKS = "this learner has no adapted blocks trained by gradient"


class RepairableBlocks:
    """The last adapted blocks of a model; what comes before them stays, and is computed once a sample.

    last: how many; all that are adapted where there are fewer.
    """

    def __init__(self, model: GradientModel, adapters: Adapters, last: int) -> None:
        self.model, self.adapters = model, adapters
        self.first_block = max(adapters.first_block, model.backbone.depth - last)
        self._kept = self.first_block - adapters.first_block  # adapted blocks before those repaired

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the blocks."""
        return self.adapters.block_names[self._kept :]

    @property
    def layers(self) -> list[LoRALinear]:
        """Their adapted layers."""
        return self.adapters.layers[self._kept :]

    def entering(self, samples: Sequence[Sample], chunk: int = 64) -> Tensor:
        """[N, T, d]: the tokens that enter the first of the blocks."""
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
        """float32 [N, width] of those tokens, with gradients to whatever is in the blocks."""
        backbone, blocks = self.model.backbone, list(self.adapters.blocks)[self._kept :]
        with self.model.compute.autocast():
            return backbone.forward_head(tokens, self.first_block, blocks)


def unfit(request: ForgetRequest, context: Context) -> str | None:
    """Why this learner's shared weights cannot be repaired for the request; None where they can."""
    model = context.capabilities.gradient_model
    if model is None or model.adapters is None:
        return NO_BLOCKS
    if cannot_drop(request, context):
        return CANNOT_DROP
    if context.scope.learned and context.unavailable is not None:
        return context.unavailable
    if not context.scope.learned and not request.samples:
        return "no sample in scope was learned, and the request carries none to show what is to go"
    return None


def opened(context: Context, last: int) -> RepairableBlocks:
    """The learner's last adapted blocks. Raises ForgettingError where it has none."""
    model = context.capabilities.gradient_model
    if model is None or model.adapters is None:
        raise ForgettingError(NO_BLOCKS)
    return RepairableBlocks(model, model.adapters, last)


def to_forget(request: ForgetRequest, context: Context, limit: int) -> list[Sample]:
    """At most `limit` samples spread evenly over those learned; where none was, those that are carried."""
    traces: list[LineageRow] = [trace for chunk in context.scope.chunks() for trace in chunk]
    if traces:
        return list(context.samples(subsample(traces, limit)))
    if not request.samples:
        raise ForgettingError("no sample in scope was learned, and the request carries none")
    return subsample(request.samples, limit)


def close(
    request: ForgetRequest, context: Context, others: Sequence[Sample], adapters: str
) -> tuple[DataLocation, ...]:
    """Drop the class, purge held samples, drop importance, derive the moments again from samples that stay.

    adapters: what was done to them. Returns what was done in each place.
    """
    model = context.capabilities.gradient_model
    assert model is not None
    dropped = drop_class(request, context)
    purged = purge(request, context)
    looked_at = derive_moments(model, others)
    head = ("erased", "its row is gone") if dropped else ("remains", "rows that the samples helped to train")
    return (
        DataLocation("head statistics", *head),  # type: ignore[arg-type]
        DataLocation("adapters", "remains", adapters),
        DataLocation(
            "optimizer moments", "erased", f"dropped, and derived again from {looked_at} retained samples"
        ),
        _importance_gone(context.capabilities.importance),
        DataLocation("hard buffer", "erased" if purged else "not affected", f"{purged} samples were in it"),
    )


def _importance_gone(importance: ParameterImportance | None) -> DataLocation:
    if importance is None:
        return DataLocation("importance", "not affected", "there are no importance weights")
    if importance.consolidations == 0:
        return DataLocation("importance", "not affected", "nothing has been consolidated")
    importance.clear()
    return DataLocation("importance", "erased", "set to zero; it is estimated anew at the next consolidation")


def rounded(figures: Mapping[str, float | int]) -> dict[str, float | int]:
    """Figures for a receipt: counts as they are, the rest to six significant digits."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in figures.items()
    }
