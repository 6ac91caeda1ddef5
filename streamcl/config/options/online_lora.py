"""Options of Online-LoRA: adapters under gradient steps, with the paper's remedies against forgetting."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import WARN, Block, Options


class LowPassOptions(Options):
    """LBP-WHT: low-pass back-propagation through frozen weights (arXiv 2309.15275)."""

    order: int = Field(
        3,
        ge=1,
        le=1024,
        description="Walsh-Hadamard bases of row + column order below this; more is closer and slower.",
    )


class BackpropOptions(Options):
    """How gradients come back through the frozen weights of adapted blocks."""

    lbp_wht: LowPassOptions | None = Field(
        None, description="On low-pass bases of the patch grid (LBP-WHT); null: whole."
    )


class OnlineLora(Options):
    """Online-LoRA with a linear head, as published (arXiv 2411.05663)."""

    name: Literal["online_lora"] = Field("online_lora", description="The paper's learner.")
    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    regularisation: float = Field(
        2000.0,
        ge=0,
        le=1e9,
        description="Lambda: weight of the importance penalty (arXiv 2411.05663).",
        json_schema_extra=WARN,
    )
    hard_buffer_size: int = Field(
        4,
        ge=0,
        le=65_536,
        description="Hard samples kept, rehearsed, and used to estimate importance; 0: none.",
    )
    buffer_weight: Literal["sample", "batch"] = Field(
        "sample",
        description="A kept sample counts in the loss as much as a fresh one (sample), or all of them "
        "together as much as the mini-batch (batch: the paper's formula).",
        json_schema_extra=WARN,
    )
    mask_absent: bool = Field(
        True,
        description="Leave classes that are not in the mini-batch out of the loss.",
        json_schema_extra=WARN,
    )
    first_block: Block = Field(0, description="First block with adapters, from 0.")
    last_blocks: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Instead of first_block: adapters in so many of the last blocks; those before them run "
        "once, without gradients.",
    )
    backprop: BackpropOptions = Field(
        BackpropOptions(), description="Shortcuts on the way back.", json_schema_extra=WARN
    )
    learning_rate: float = Field(5e-4, gt=0, le=10, description="Adam's step size.", json_schema_extra=WARN)
    optimizer: Literal["adam"] = Field("adam", description="The optimizer.")

    @model_validator(mode="after")
    def _one_beginning(self) -> OnlineLora:
        if self.first_block and self.last_blocks is not None:
            raise PydanticCustomError("both", "'first_block' and 'last_blocks' say the same: give one")
        return self
