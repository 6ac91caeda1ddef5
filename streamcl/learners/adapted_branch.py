"""A branch of adapted blocks: LoRA learns at the beginning of a stream, then is frozen for a ridge head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from streamcl.config.options.base import BlockIndex, Options, Warn
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.events import Sample
from streamcl.learners.blending import BlendedBranch
from streamcl.learners.branch_parts import adapted_blocks_of, build_head
from streamcl.learners.factory import LearnerContext
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.protocols import Rollback, State

with lazy_imports():
    import torch

    from streamcl.heads import linear
    from streamcl.learners import adapter_model, block_features
    from streamcl.nn import adapted_blocks, optimizer_state, optimizers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from streamcl.heads.ridge import RidgeHead
    from streamcl.nn.adapted_blocks import Adapters
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

ADAPTED_SHARE = 1 / 3
"""Weight of the adapted branch where its statistics are true; 1/4 to 1/2 differ little."""


def adapted_share(stale: Tensor, counts: Tensor) -> Tensor:
    """Return float64 [C], the weight of a branch in the blend of scores, by class.

    Args:
        stale: int64 [C], samples that the branch learned before its adapters were frozen.
        counts: int64 [C], all samples that it has learned.
    """
    return ADAPTED_SHARE * (1 - stale.double() / counts.clamp(min=1))


class LoRABranchOptions(Options):
    """LoRA on the last blocks, trained at the beginning of the stream and then frozen."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: BlockIndex | None = Field(
        None, description="First block with adapters, from 0; null: after the first third."
    )
    learning_rate: Warn[float] = Field(3e-3, gt=0, le=10, description="Adam's step size.")
    steps: Warn[int] = Field(3, ge=1, le=100, description="Optimizer steps per batch during warm-up.")
    warmup_samples: Warn[int] = Field(
        832,
        ge=0,
        le=10**9,
        description="Labelled samples after which the adapters freeze, or at a plateau before that; 0: none.",
    )

    def first_adapted(self, depth: int) -> int:
        """Return the first block with adapters of a backbone with so many blocks."""
        return depth // 3 if self.first_block is None else self.first_block


@dataclass(frozen=True, slots=True, eq=False)
class RidgeLoRAFeatures:
    """The features of B samples.

    features: float32 [B, D], of the frozen blocks. views: each view's tokens [B, N, d] where the adapted
    branch begins. adapted: float32 [B, E], None without a frozen branch.
    """

    features: Tensor
    views: Sequence[Tensor]
    adapted: Tensor | None

    def __getitem__(self, rows: Sequence[int]) -> RidgeLoRAFeatures:
        """Return those of some rows."""
        adapted = None if self.adapted is None else self.adapted[rows]
        return RidgeLoRAFeatures(self.features[rows], [view[rows] for view in self.views], adapted)


class AdaptedBranch(BlendedBranch):
    """LoRA on the blocks from `first_block` on, and a ridge head on what those blocks then give.

    While it adapts, `steps` Adam steps are made on each batch, on its views in turn: cross-entropy over the
    classes of the batch alone (absent classes masked), through a linear probe on the last block's tokens. It
    is frozen after `warmup_samples`, or at the first plateau: the adapters are folded into the branch's own
    weights and never move again, so that the statistics gathered from there on stay true. Those gathered
    before belong to features that still moved; the frozen branch beside it makes up for them.
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        head: RidgeHead,
        *,
        blocks: Sequence[int],
        first_block: int,
        rank: int = 4,
        learning_rate: float = 3e-3,
        steps: int = 3,
        warmup_samples: int = 832,
        seed: int = 0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.group = group
        self.backbone = backbone
        self.compute = compute
        self._head = head
        self.blocks = tuple(block for block in sorted(blocks) if block >= first_block)
        self.generator = torch.Generator().manual_seed(seed)
        self._adapters = adapted_blocks.Adapters(
            backbone, rank=rank, first_block=first_block, generator=self.generator
        )
        self.probe = linear.LinearHead(2 * backbone.width, device=backbone.device)
        self._optimizer = optimizers.Adam(self._parameters().values(), lr=learning_rate, fused=True)
        self._steps = steps
        self._left = warmup_samples
        self._stale: tuple[int, ...] = ()  # per class column, samples learned while the features moved

    @property
    def frozen(self) -> bool:
        """Whether the adapters are frozen, which is for good."""
        return self._left <= 0

    def features(self, tokens: Tensor) -> Tensor:
        """Return float32 [B, F] of tokens [B, N, d], the input of block `first_block`."""
        return block_features.map_chunks(self._fused, tokens, self.compute)

    def _fused(self, tokens: Tensor) -> Tensor:
        with torch.no_grad(), self.compute.autocast():
            return block_features.concat_block_tokens(
                self.backbone, self.adapters.run(tokens), self.blocks, self.adapters.first_block
            )

    def adapt(
        self,
        views: Sequence[Tensor],
        targets: Tensor,
        classes: int,
        samples: Sequence[Sample] | None = None,
    ) -> bool:
        """Train the adapters on a batch; return False where a loss or a gradient is not finite.

        Args:
            views: the tokens [L, N, d] at `first_block`, for each view.
            targets: int64 [L], class columns.
            classes: the number of class columns.
            samples: the labelled samples of a batch that several ranks learn, each with its share of tokens.
        """
        self.probe.grow(classes, self._optimizer)
        for step in range(self._steps):
            if not self._step(views[step % len(views)], targets, samples):
                return False
        self._left -= len(targets)
        if self.frozen:
            self.freeze()
        return True

    @property
    def adapters(self) -> Adapters:
        """The adapted blocks."""
        return self._adapters

    @property
    def version(self) -> int:
        """Changes once, when the adapters are frozen and the branch gets a say."""
        return self.frozen

    @property
    def head(self) -> RidgeHead:
        """The head on the adapted features."""
        return self._head

    @property
    def shares(self) -> Tensor:
        """The branch's weight on each class of the head, float64 [C].

        It is a third for a class if all of its samples came after the adapters were frozen, and less by the
        share that came before. With equal weights, classes of the start were lost: 96.5 % at the end of a
        video of fruits of which the frozen branch alone has 99.1.
        """
        counts = self.head.statistics.counts
        stale = counts.new_tensor([*self._stale, *[0] * (len(counts) - len(self._stale))])
        return adapted_share(stale, counts)

    def freeze(self) -> None:
        """Merge the adapters; from here on only the statistics of the branch change."""
        self._left = 0
        self._stale = self.head.counts
        self.adapters.consolidate(self.generator)
        self.adapters.bypass_lora()
        self._optimizer.state.clear()

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state before a step, bit for bit; copies while it adapts."""
        head = self.head.savepoint()
        if self.frozen:
            return head
        state = self._training_state()

        def undo() -> None:
            head()
            self._load_training(state)

        return undo

    def drop_class(self, column: int) -> None:
        """Lose a class column; raises ForgettingError while its samples are in the statistics."""
        self.head.drop_class(column)
        self._stale = (*self._stale[:column], *self._stale[column + 1 :])
        if not self.frozen and column < self.probe.classes:
            self.probe.drop(column, self._optimizer)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {**self.adapters.trainable(), **{f"probe.{n}": p for n, p in self.probe.named_parameters()}}

    def _step(self, tokens: Tensor, targets: Tensor, samples: Sequence[Sample] | None) -> bool:
        with self.compute.autocast():
            last = self.backbone.class_and_centre_tokens(self.adapters.run(tokens)[-1])
        if samples is not None:
            last = self.group.all_gather_rows(last, samples)
        loss = linear.masked_cross_entropy(self.probe(last), targets, targets.unique()).mean()
        parameters = self._parameters()
        gradients = adapter_model.finite_gradients(loss, parameters, self.group, head="probe")
        if gradients is not None:
            adapter_model.apply_gradients(self._optimizer, parameters, gradients)
        return gradients is not None

    def state_dict(self) -> State:
        """Return adapters, statistics and, until the branch is frozen, the state of its training."""
        return {"head": self.head.state_dict(), **self._training_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the branch that returned `state`."""
        self.head.load_state_dict(state["head"])
        self._load_training(state)

    def _training_state(self) -> State:
        state: State = {
            "adapters": self.adapters.export_state(),
            "left": self._left,
            "stale": list(self._stale),
            "generator": self.generator.get_state().numpy().copy(),
        }
        if self.frozen:
            return state
        moments = optimizer_state.export_moments(self._optimizer, self._parameters())
        return {**state, "probe": self.probe.export_state(), "moments": moments}

    def _load_training(self, state: Mapping[str, Any]) -> None:
        self._left = int(state["left"])
        self._stale = tuple(state["stale"])
        self.adapters.import_state(state["adapters"])
        self.generator.set_state(torch.from_numpy(state["generator"].copy()))
        if self.frozen:
            self.adapters.bypass_lora()
        else:
            self.probe.import_state(state["probe"], self._optimizer)
            optimizer_state.import_moments(self._optimizer, self._parameters(), state["moments"])


def build_branch(
    ridge: RidgeOptions, lora: LoRABranchOptions, context: LearnerContext, seed: int
) -> AdaptedBranch:
    """Return adapters on the last blocks, with a ridge head of their own."""
    first, blocks = adapted_blocks_of(ridge, lora, context)
    options = {**lora.model_dump(), "first_block": first}
    return AdaptedBranch(
        context.backbone,
        context.compute,
        build_head(ridge, blocks, context),
        blocks=blocks,
        **options,
        seed=seed,
        group=context.group,
    )
