"""Jacobians of a few outputs a sample by lora_B and the head: one backward pass an output, not a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.forgetting.methods.weight_repair import RepairableBlocks
from streamcl.heads.linear import LinearHead
from streamcl.nn.lora import LoRALinear

SampleOutput: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features [N, d], logits [N, C], rows [N]) to one number a sample, [N], of its own features alone."""

LayerTensors: TypeAlias = dict[LoRALinear, tuple[Tensor, Tensor]]
"""Inputs and outputs of each layer, in one pass over some samples."""


class ParameterSubset:
    """The parameters that a closed form moves: lora_B of some layers, and the head where one is given.

    lora_A stays as it is, so what each layer adds is linear in what moves.
    """

    def __init__(self, blocks: RepairableBlocks, head: LinearHead | None = None) -> None:
        self._blocks, self._head = blocks, head

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters in the order of a Jacobian's columns."""
        pairs = [layer.lora_B for layer in self._blocks.layers]
        return pairs if self._head is None else [*pairs, self._head.weight, self._head.bias]

    @property
    def count(self) -> int:
        """The number p of entries, the columns of a Jacobian."""
        return sum(parameter.numel() for parameter in self.parameters)

    def jacobian(self, tokens: Tensor, outputs: Sequence[SampleOutput], chunk: int = 64) -> Tensor:
        """Return the Jacobian, float64 [K N, p], of K outputs of N samples: one output of all, then the next.

        Args:
            tokens: [N, T, d], those that enter the first of the blocks.
            outputs: K functions that give one number a sample.
            chunk: samples in one forward pass.
        """
        parts = [self._of(tokens[i : i + chunk], outputs, i) for i in range(0, len(tokens), chunk)]
        return torch.cat(parts, dim=1).flatten(0, 1)

    @torch.no_grad()
    def move(self, step: Tensor) -> None:
        """Add a step, float64 [P] over all parameters."""
        parts = step.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(parameter.double() + part.view_as(parameter))

    def copy(self) -> list[Tensor]:
        """Return a copy of the values, by parameter."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        """Set the values that `copy` returned, by parameter and each of its shape."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def _of(self, tokens: Tensor, outputs: Sequence[SampleOutput], first: int) -> Tensor:
        """Return float64 [K, N, p] of samples first .. first + N - 1."""
        rows = torch.arange(first, first + len(tokens), device=tokens.device)
        with _recorded(self._blocks.layers) as seen:
            features = self._blocks.features(tokens)
        logits = torch.as_tensor(self._blocks.model.head(features))
        sought = [given for _, given in seen.values()] + ([logits] if self._head is not None else [])
        found = []
        for output in outputs:
            value = output(features, logits, rows).sum()
            gradients = torch.autograd.grad(
                value, sought, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            parts = [
                _by_pair(layer, taken, gradient, len(tokens))
                for (layer, (taken, _)), gradient in zip(seen.items(), gradients, strict=False)
            ]
            if self._head is not None:
                by_weight = gradients[-1][:, :, None] * features.detach()[:, None]  # [N, C, d]
                parts += [by_weight.flatten(1), gradients[-1]]
            found.append(torch.cat([part.double() for part in parts], dim=1))
        return torch.stack(found)


def _by_pair(layer: LoRALinear, taken: Tensor, gradient: Tensor, samples: int) -> Tensor:
    """Return [N, 2 o r] from a layer's input and the gradient at its output; both hold N samples in order."""
    h = F.linear(taken.detach().float(), layer.lora_A.detach())  # [..., 2r]
    query, value = h.reshape(samples, -1, 2, layer.rank).unbind(2)  # [N, T, r] each
    rows = gradient.float().reshape(samples, -1, 3, layer.out_features // 3)  # q, k and v, [N, T, 3, o]
    pairs = ((rows[:, :, 0], query), (rows[:, :, 2], value))
    return torch.cat([(g.transpose(1, 2) @ x).flatten(1) for g, x in pairs], dim=1)


@contextmanager
def _recorded(layers: Sequence[LoRALinear]) -> Iterator[LayerTensors]:
    seen: LayerTensors = {}

    def note(layer: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
        assert isinstance(layer, LoRALinear)
        seen[layer] = (taken[0], given)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
