"""Online-LoRA (arXiv 2411.05663): adapters and a linear head, one step a mini-batch, without tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamcl.backbone import Backbone
from streamcl.buffer import HardBuffer
from streamcl.compute import Compute
from streamcl.events import Batch, Guess, Lesson, Sample
from streamcl.heads.linear import LinearHead, masked_cross_entropy
from streamcl.importance import Importance, squared_gradients
from streamcl.learners.classes import ClassIndex
from streamcl.learners.guesses import finite, guesses, surprise
from streamcl.learners.optimizer_state import drop_moments, export_moments, import_moments
from streamcl.lora import Adapters
from streamcl.protocols import State


class OnlineLoRALearner:
    """Frozen ViT, LoRA on q and v of its last blocks, a growing linear head; one Adam step a batch.

    The loss of a step (section 3 of the paper) is
    CE(batch) + CE(hard buffer) + (lambda / 2) sum Omega theta^2,
    each cross-entropy a mean over samples. The hard buffer rides in the same forward pass as the batch, and
    the guesses come out of it too, so predicting before learning costs nothing.

    Where the paper's reference code departs from its formulas, this follows the formulas: consolidation
    folds B A into the frozen weight and draws a new pair, the importance is a mean over single samples of
    the whole buffer, and the buffer holds samples, not batches.

    rank: of the q and of the v adapter. first_block: the blocks before it stay without adapters.
    regularisation: lambda. buffer: samples in the hard buffer.
    mask_absent: leave classes that are not in the step's samples out of its cross-entropy.
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        *,
        rank: int = 4,
        first_block: int = 0,
        learning_rate: float = 5e-4,
        regularisation: float = 2000.0,
        buffer: int = 4,
        mask_absent: bool = True,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.compute = compute
        self.generator = torch.Generator().manual_seed(seed)
        self.adapters = Adapters(backbone, rank=rank, first_block=first_block, generator=self.generator)
        self.head = LinearHead(backbone.width, device=backbone.device)
        shapes = {name: tuple(parameter.shape) for name, parameter in self.adapters.trainable().items()}
        self.importance = Importance(shapes, device=backbone.device)
        self.buffer = HardBuffer(buffer)
        self._regularisation = regularisation
        self._mask_absent = mask_absent
        self._index = ClassIndex()
        self._optimizer = torch.optim.Adam(self._parameters().values(), lr=learning_rate)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        return self._index.names

    def predict(self, samples: Sequence[Sample]) -> tuple[Guess, ...]:
        """One guess per sample; changes nothing."""
        if not samples:
            return ()
        with torch.no_grad():
            return guesses(self.head(self._features(samples)), self.classes)

    def learn(self, batch: Batch) -> Lesson:
        """Predict the batch, then take one step on its labelled samples and the hard buffer."""
        learnable = batch.labelled
        if not learnable:
            return Lesson(self.predict(batch.samples), ())
        held = self.buffer.samples
        features = self._features([*batch.samples, *held])  # [B + H, d]
        predicted = guesses(self.head(features[: len(batch)]).detach(), self.classes)
        self._grow(learnable)
        rows = [i for i, sample in enumerate(batch.samples) if sample.label is not None]
        features = features[[*rows, *range(len(batch), len(features))]]  # [L + H, d]
        logits = self.head(features)  # [L + H, C]
        targets = self._index.columns([s.label for s in (*learnable, *held)], logits.device)  # [L + H]
        shown = surprise(logits[: len(rows)].detach(), targets[: len(rows)]).tolist()
        losses = self._losses(logits, targets)  # [L + H]
        if not self._step(losses, len(rows)):
            return Lesson(predicted, tuple(shown), learned=False)
        self._remember(learnable, losses.detach())
        return Lesson(predicted, tuple(shown))

    def consolidate(self) -> Mapping[str, Any]:
        """Estimate the importance of the present pair on the hard buffer, fold it, start a fresh pair."""
        pair = self.adapters.trainable()
        held = self.buffer.samples
        if held:
            self.importance.update(squared_gradients(self._loss_of_held(held), len(held), pair))
        norm = sum(float(parameter.detach().square().sum()) for parameter in pair.values()) ** 0.5
        self.adapters.consolidate(self.generator)
        drop_moments(self._optimizer, self.adapters.trainable().values())
        return {"adapter_norm": norm, "buffer": len(held)}

    def state_dict(self) -> State:
        """Everything that decides what comes next; the backbone's own weights are not in it."""
        return {
            "adapters": self.adapters.export_state(),
            "head": self.head.export_state(),
            "moments": export_moments(self._optimizer, self._parameters()),
            "importance": self.importance.state_dict(),
            "buffer": self.buffer.state_dict(),
            "classes": list(self.classes),
            "generator": self.generator.get_state().numpy().copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self._index = ClassIndex(state["classes"])
        self.adapters.import_state(state["adapters"])
        self.head.grow(len(self._index), self._optimizer)
        self.head.import_state(state["head"])
        import_moments(self._optimizer, self._parameters(), state["moments"])
        self.importance.load_state_dict(state["importance"])
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(torch.from_numpy(state["generator"].copy()))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {**self.adapters.trainable(), **{f"head.{n}": p for n, p in self.head.named_parameters()}}

    def _features(self, samples: Sequence[Sample]) -> Tensor:
        """[B, d]: the adapted backbone's final features; gradients reach the adapters only."""
        with self.compute.autocast():
            with torch.no_grad():
                tokens = self.backbone.stem(self.backbone.prepare([sample.image for sample in samples]))
                tokens = ([tokens, *self.backbone.run(tokens, 0, self.adapters.first_block)])[-1]
            return self.backbone.final(self.adapters.run(tokens)[-1]).float()

    def _grow(self, samples: Sequence[Sample]) -> None:
        self._index.add(sample.label for sample in samples if sample.label is not None)
        self.head.grow(len(self._index), self._optimizer)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        present = (
            targets.unique() if self._mask_absent else torch.arange(logits.shape[1], device=logits.device)
        )
        return masked_cross_entropy(logits, targets, present)

    def _step(self, losses: Tensor, fresh: int) -> bool:
        """One Adam step on per-sample losses, the first `fresh` of them the batch's; False if not finite."""
        loss = losses[:fresh].mean() + self.importance.penalty(
            self.adapters.trainable(), self._regularisation
        )
        if len(losses) > fresh:
            loss = loss + losses[fresh:].mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self._parameters().values() if p.grad is not None]
        sound = finite(loss.detach(), *gradients)
        if sound:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sound

    def _remember(self, samples: Sequence[Sample], losses: Tensor) -> None:
        values = losses.tolist()
        self.buffer.refresh(values[len(samples) :])
        self.buffer.update(samples, values[: len(samples)])

    def _loss_of_held(self, held: Sequence[Sample]) -> Any:
        def loss_of(i: int) -> Tensor:
            logits = self.head(self._features([held[i]]))
            return surprise(logits, self._index.columns([held[i].label], logits.device)).sum()

        return loss_of
