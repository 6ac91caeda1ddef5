"""Trains adapters on stored latents, as a function of these, a seed and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from streamcl.distributed.process_group import SINGLE_PROCESS
from streamcl.heads.linear import LinearHead
from streamcl.learners.adapter_model import apply_gradients, finite_gradients
from streamcl.learners.block_features import concat_block_tokens, map_chunks
from streamcl.nn.adapted_blocks import Adapters

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.memory.latent_store import LatentGroup
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

BATCH = 64
"""Samples of a training step."""
WARMUP_STEPS = 10
"""Steps over which the step size rises; it then falls along half a cosine."""
MIN_STEPS = 40
"""Steps that a training has at least, in up to three passes over what is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTraining:
    """The settings of a training.

    Attributes:
        backbone: the frozen transformer.
        compute: device and precision.
        first_block: the first block with adapters, whose input tokens are stored.
        rank: of each adapter.
        learning_rate: Adam's largest step size.
        passes: over the samples; less than 1 takes a share of them.
        views: of an image, whose tokens are stored one view after another; the first is trained on.
    """

    backbone: Backbone
    compute: Compute
    first_block: int
    rank: int = 4
    learning_rate: float = 2e-3
    passes: float = 0.5
    views: int = 1

    def untrained(self, seed: int) -> Adapters:
        """Return adapters that add nothing yet."""
        return Adapters(
            self.backbone,
            rank=self.rank,
            first_block=self.first_block,
            generator=torch.Generator().manual_seed(seed),
        )

    def steps(self, samples: int) -> int:
        """Return the number of optimizer steps for so many stored samples."""
        least = min(MIN_STEPS, math.ceil(3 * samples / BATCH))
        return max(least, math.ceil(self.passes * samples / BATCH))

    def train(self, samples: LatentGroup | None, seed: int) -> Adapters:
        """Return adapters that were trained on samples, folded into their layers' weights.

        The samples' order is that of their places, and a class's column in the probe that of its name. So the
        result is the same bits however they came here. Samples of fewer than two classes train nothing, nor
        does a training in which a loss or a gradient is not finite.

        Args:
            samples: stored latents; None: none.
            seed: of the adapters.
        """
        generator = torch.Generator().manual_seed(seed)
        adapters = Adapters(self.backbone, rank=self.rank, first_block=self.first_block, generator=generator)
        names = [] if samples is None else sorted(set(samples.labels))
        if samples is None or len(names) < 2 or not self._descend(adapters, samples, names):
            adapters, generator = self.untrained(seed), torch.Generator().manual_seed(seed)
        adapters.consolidate(generator)
        adapters.bypass_lora()
        return adapters

    def read(self, adapters: Adapters, blocks: Sequence[int], tokens: Tensor) -> Tensor:
        """Return float32 [B, F], what some blocks with adapters give, always the same for the same tokens.

        Args:
            adapters: of the blocks from `first_block` on.
            blocks: numbers of those that are read.
            tokens: [B, N, d], of one view at `first_block`.
        """

        def run(chunk: Tensor) -> Tensor:
            with torch.no_grad(), self.compute.autocast():
                return concat_block_tokens(self.backbone, adapters.run(chunk), blocks, self.first_block)

        return map_chunks(run, tokens, self.compute)

    def seconds(self, samples: LatentGroup | None) -> float:
        """Return how long `train` would take, by the time of two steps on a few samples."""
        if samples is None:
            return 0.0
        some = samples.select(np.arange(min(BATCH, len(samples))))
        adapters, names = self.untrained(0), sorted(set(some.labels))
        times = []
        for _ in range(2):
            began = time.perf_counter()
            self._descend(adapters, some, names, steps=1)
            times.append(time.perf_counter() - began)
        return min(times) * self.steps(len(samples)) * BATCH / len(some)

    def _descend(
        self, adapters: Adapters, samples: LatentGroup, names: Sequence[str], steps: int | None = None
    ) -> bool:
        """Train the adapters and a probe of their own; return False where a value is not finite."""
        device = self.backbone.device
        probe = LinearHead(2 * self.backbone.width, device=device)
        probe.grow(len(names))
        parameters = {**adapters.trainable(), **{f"probe.{n}": p for n, p in probe.named_parameters()}}
        optimizer = torch.optim.Adam(parameters.values(), lr=self.learning_rate, fused=True)
        columns = {name: column for column, name in enumerate(names)}
        targets = torch.tensor([columns[label] for label in samples.labels], device=device)
        order, total = np.argsort(samples.places, kind="stable"), steps or self.steps(len(samples))
        for step in range(total):
            rows = order[np.arange(step * BATCH, step * BATCH + min(BATCH, len(order))) % len(order)]
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * _step_size(step, total)
            stored = torch.from_numpy(samples.tokens[rows].restored()).to(device)
            tokens = stored.chunk(self.views, dim=1)[0]
            with self.compute.autocast():
                last = self.backbone.class_and_centre_tokens(adapters.run(tokens)[-1])
            loss = F.cross_entropy(probe(last.float()), targets[torch.from_numpy(rows).to(device)])
            gradients = finite_gradients(loss, parameters, SINGLE_PROCESS, head="probe")
            if gradients is None:
                return False
            apply_gradients(optimizer, parameters, gradients)
        return True


def _step_size(step: int, steps: int) -> float:
    """Return the step size as a share of the largest: a linear rise, then half a cosine."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
