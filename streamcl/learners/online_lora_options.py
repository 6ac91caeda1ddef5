"""Options of Online-LoRA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import BlockIndex, Options, Warn
from streamcl.learners.backprop_options import BackpropOptions
from streamcl.learners.latent_options import LatentReplayOptions


class OnlineLoRAOptions(Options):
    """Online-LoRA with a linear head (arXiv 2411.05663); its hard buffer is off by default."""

    name: Literal["online_lora"] = Field("online_lora", description="The paper's learner.")
    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    regularisation: Warn[float] = Field(
        2000.0,
        ge=0,
        le=1e9,
        description="Lambda: weight of the importance penalty, which needs a hard buffer.",
    )
    hard_buffer_size: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Hard samples stored, replayed, and used to estimate importance; 0: none, and so no "
        "penalty either. The paper has 4, which lost accuracy on both streams where this was measured.",
    )
    buffer_weight: Warn[Literal["sample", "batch"]] = Field(
        "sample",
        description="A stored sample counts in the loss as much as a new one (sample), or all of them "
        "together as much as the mini-batch (batch: the paper's formula).",
    )
    mask_absent: Warn[bool] = Field(
        True, description="Leave classes that are not in the mini-batch out of the loss."
    )
    first_block: BlockIndex = Field(0, description="First block with adapters, from 0.")
    last_blocks: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Instead of first_block: adapters in so many of the last blocks; those before them run "
        "once, without gradients.",
    )
    backprop: Warn[BackpropOptions] = Field(
        BackpropOptions(), description="Approximations in back-propagation."
    )
    latents: LatentReplayOptions | None = Field(
        None,
        description="Stored tokens, of which as many as a mini-batch has are learned with each again (latent "
        "replay, arXiv 1912.01100); they need first_block or last_blocks. null: none.",
    )
    learning_rate: Warn[float] = Field(5e-4, gt=0, le=10, description="Adam's step size.")
    optimizer: Literal["adam"] = Field("adam", description="The optimizer.")

    @model_validator(mode="after")
    def _one_beginning(self) -> OnlineLoRAOptions:
        if self.first_block and self.last_blocks is not None:
            raise PydanticCustomError("both", "'first_block' and 'last_blocks' exclude each other: give one")
        return self

    @model_validator(mode="after")
    def _one_memory(self) -> OnlineLoRAOptions:
        if self.hard_buffer_size and self.latents is not None and self.latents.budget:
            raise PydanticCustomError("both", "'hard_buffer_size' and 'latents' exclude each other: give one")
        return self
