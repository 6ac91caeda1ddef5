"""Online-LoRA (arXiv 2411.05663): adapters and a linear head, one step a mini-batch, without tasks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import AdapterExport
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.events import Batch, Sample
from streamcl.learners.backprop_options import build_low_pass
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.gradient_learner import GradientLearner
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.online_lora_options import OnlineLoRAOptions
from streamcl.memory.hard_buffer import HardBuffer
from streamcl.protocols import Rollback, State

with lazy_imports():
    import torch
    from torch.nn import functional as F

    from streamcl.heads import linear as linear_head
    from streamcl.learners import adapter_model, latent_factory, predictions
    from streamcl.memory import importance as importance_weights
    from streamcl.memory import latent_replay
    from streamcl.nn import adapted_blocks, optimizer_state, optimizers

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.adapter_model import ForwardPass
    from streamcl.memory.latent_replay import LatentReplay
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute
    from streamcl.nn.low_pass_backprop import LowPass


class OnlineLoRALearner(GradientLearner):
    """Frozen ViT, LoRA on q and v of its last blocks, a growing linear head; one Adam step a batch.

    The loss of a step (section 3 of the paper) is
    CE(batch) + w CE(hard buffer) + (lambda / 2) sum Omega theta^2,
    each cross-entropy a mean over samples, with w = 1 in the paper. Its code holds four whole batches, so
    that a held sample counts a fourth of a fresh one. Of four single samples, the hardest, each would count
    sixteen times one of a batch of 64, and they drown every class that comes later (final accuracy on 57
    disjoint groups of emoji: 2.7 %). So w makes samples count alike (11.2 %). The hard buffer rides in the
    same forward pass as the batch, which gives the predictions too, so predicting before learning costs
    nothing.

    With stored latents those drawn for a step compete with all classes known, the batch's own samples only
    with the classes of the batch (ER-ACE, arXiv 2104.05025): 31.1 % on those emoji, and 24.6 with one mask
    for both.

    Where the paper's reference code departs from its formulas, this follows the formulas: consolidation
    folds B A into the frozen weight and draws a new pair, the importance is a mean over single samples of
    the whole buffer, and the buffer holds samples, not batches.

    Args:
        backbone: the frozen transformer.
        compute: device and precision.
        rank: of the q and of the v adapter.
        first_block: the blocks before it stay without adapters.
        learning_rate: of Adam.
        regularisation: lambda.
        hard_buffer_size: samples in the hard buffer, 4 in the paper; with 0, importance stays zero and there
            is no penalty.
        buffer_weight: "sample" makes a held sample count as a fresh one, w = held / fresh; "batch" is w = 1.
        mask_absent: leave classes that are not in the step's samples out of its cross-entropy.
        low_pass: takes gradients through frozen weights on bases of the grid; None passes them whole.
        latents: stored tokens, of which as many as a batch has labels are learned with it, in place of a hard
            buffer; None: none.
        seed: of the adapters and of the head's new rows.
        group: the processes that learn a batch together.
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
        hard_buffer_size: int = 0,
        buffer_weight: Literal["sample", "batch"] = "sample",
        mask_absent: bool = True,
        low_pass: LowPass | None = None,
        latents: LatentReplay | None = None,
        seed: int = 0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.adapters = adapted_blocks.Adapters(
            backbone, rank=rank, first_block=first_block, generator=generator, low_pass=low_pass
        )
        model = adapter_model.AdapterModel(
            backbone,
            compute,
            self.adapters,
            optimizer=functools.partial(optimizers.Adam, lr=learning_rate, fused=True),
            generator=generator,
            group=group,
        )
        super().__init__(model)
        self.backbone, self.compute = backbone, compute
        self.head = self.model.head
        shapes = {name: tuple(parameter.shape) for name, parameter in self.adapters.trainable().items()}
        self.importance = importance_weights.Importance(shapes, device=backbone.device)
        self.buffer, self.latents = HardBuffer(hard_buffer_size), latents
        self._regularisation = regularisation
        self._mask_absent = mask_absent
        self._alike = buffer_weight == "sample"

    def consolidate(self) -> Mapping[str, Any]:
        """Estimate the importance of the present pair on the hard buffer, fold it, start a fresh pair."""
        pair = self.adapters.trainable()
        held = self.buffer.samples
        if held:
            self.importance.update(
                importance_weights.squared_gradients(self._loss_of_held(held), len(held), pair)
            )
        norm = sum(float(parameter.detach().square().sum()) for parameter in pair.values()) ** 0.5
        self.adapters.consolidate(self.model.generator)
        optimizer_state.drop_moments(self.model.optimizer, self.adapters.trainable().values())
        return {"adapter_norm": norm, "buffer": len(held)}

    def drop_class(self, name: str) -> None:
        """Lose a class: its row of the head goes, what it taught the adapters stays."""
        self.model.drop_class(name)

    @property
    def capabilities(self) -> Capabilities:
        """A model that a repair trains further, the hard buffer, and the importance estimated from it."""
        return replace(
            super().capabilities,
            drop_class=self.drop_class,
            replay_buffer=self.buffer,
            importance=self.importance if self.buffer.capacity else None,
            stored_features=self.latents,
            adapter_export=AdapterExport(self.adapters, self.model.head, self.classes),
            prediction_state=_without_samples,
        )

    def weights_trained_on(self, samples: Iterator[Sequence[object]]) -> tuple[str, ...]:
        """Every sample learned has moved the adapters and the whole head, and may have set the importance."""
        importance = ("importance",) if self.buffer.capacity else ()
        return ("adapters", "head", *importance) if any(samples) else ()

    def state_dict(self) -> State:
        """Everything that decides what comes next; the backbone's own weights are not in it."""
        return {
            **super().state_dict(),
            "importance": self.importance.state_dict(),
            "buffer": self.buffer.state_dict(),
            **({} if self.latents is None else {"latents": self.latents.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        super().load_state_dict(state)
        self.importance.load_state_dict(state["importance"])
        self.buffer.load_state_dict(state["buffer"])
        if self.latents is not None:
            self.latents.load_state_dict(state["latents"])

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        present = (
            targets.unique() if self._mask_absent else torch.arange(logits.shape[1], device=logits.device)
        )
        return linear_head.masked_cross_entropy(logits, targets, present)

    def _objective(self, losses: Tensor, fresh: int) -> Tensor:
        """The loss of a step from losses [L + H], the first `fresh` of them the batch's."""
        penalty = self.importance.penalty(self.adapters.trainable(), self._regularisation)
        loss = losses[:fresh].mean() + self.model.group.count_once(penalty)
        held = len(losses) - fresh
        if not held:
            return loss
        return loss + (held / fresh if self._alike else 1.0) * losses[fresh:].mean()

    def _savepoints(self) -> Sequence[Rollback]:
        latents = () if self.latents is None else (self.latents.savepoint(),)
        return (*super()._savepoints(), self.buffer.savepoint(), *latents)

    def _forward(self, batch: Batch) -> ForwardPass:
        if self.latents is None:
            return super()._forward(batch)
        stored = self.latents.draw(len(batch.labelled), self.model.generator)
        return self.model.forward_with_stored(batch, stored)

    def _replay_samples(self, count: int) -> Sequence[Sample]:  # noqa: ARG002 - all that are held
        return self.buffer.samples

    def _loss(self, seen: ForwardPass) -> Tensor:
        fresh = len(seen.learnable)
        if self.latents is None:
            return self._objective(self._losses(seen.logits, seen.targets), fresh)
        own = self._losses(seen.logits[:fresh], seen.targets[:fresh])
        stored = F.cross_entropy(seen.logits[fresh:], seen.targets[fresh:], reduction="none")
        return self._objective(torch.cat([own, stored]), fresh)

    def _update_buffer(self, seen: ForwardPass) -> None:
        samples = seen.learnable
        if self.latents is not None and seen.tokens is not None:
            self.latents.offer(seen.tokens, samples, seen.batch.labelled_offsets)
            return
        values = self._losses(seen.logits.detach(), seen.targets).tolist()  # [L + H]
        self.buffer.refresh(values[len(samples) :])
        self.buffer.update(samples, values[: len(samples)])
        self.buffer.complete(lambda held: self.model.group.fetch_pixels(held, samples))

    def _loss_of_held(self, held: Sequence[Sample]) -> Any:
        def loss_of(i: int) -> Tensor:
            logits = self.head(self.model.features([held[i]]))
            return predictions.open_set_nll(logits, self.model.targets([held[i]])).sum()

        return loss_of


_BUILT_HERE = {"name", "first_block", "last_blocks", "backprop", "latents", "optimizer"}
"""Options that are no arguments of the learner as they are."""


def build_online_lora(options: OnlineLoRAOptions, context: LearnerContext) -> OnlineLoRALearner:
    """Return the learner that the options describe, for the context's backbone and seed."""
    first, latents = _first_block(options, context), None
    if options.latents is not None and options.latents.budget:
        latents = latent_factory.build_latent_replay(options.latents, first, context)
    return OnlineLoRALearner(
        context.backbone,
        context.compute,
        **options.model_dump(exclude=_BUILT_HERE),
        first_block=first,
        latents=latents,
        low_pass=build_low_pass(options.backprop, context),
        seed=context.seed,
        group=context.group,
    )


def _without_samples(state: State) -> State:
    reduced = {**state, "buffer": HardBuffer.without_samples(state["buffer"])}
    if "latents" in state:
        reduced["latents"] = latent_replay.LatentReplay.without_tokens(state["latents"])
    return reduced


def _first_block(options: OnlineLoRAOptions, context: LearnerContext) -> int:
    depth = context.backbone.depth
    if options.last_blocks is None:
        return options.first_block
    if options.last_blocks > depth:
        raise context.refuse(
            "learner.last_blocks", f"is {options.last_blocks}, but the backbone has {depth} blocks"
        )
    return depth - options.last_blocks


ONLINE_LORA = LearnerFactory(OnlineLoRAOptions, build_online_lora, distributed=True)
