"""Options of Online-LoRA (arXiv 2411.05663)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import WARN_ON_RESUME, BlockIndex, Options


class LowPassOptions(Options):
    """LBP-WHT: low-pass back-propagation through frozen weights (arXiv 2309.15275)."""

    order: int = Field(
        3,
        ge=1,
        le=1024,
        description="Walsh-Hadamard bases of row + column order below this; more is closer and slower.",
    )


class BackpropOptions(Options):
    """Back-propagation through the frozen weights of adapted blocks."""

    lbp_wht: LowPassOptions | None = Field(
        None, description="On low-pass bases of the patch grid (LBP-WHT); null: in full."
    )


class OnlineLoRAOptions(Options):
    """Online-LoRA with a linear head, as published (arXiv 2411.05663)."""

    name: Literal["online_lora"] = Field("online_lora", description="The paper's learner.")
    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    regularisation: float = Field(
        2000.0,
        ge=0,
        le=1e9,
        description="Lambda: weight of the importance penalty (arXiv 2411.05663).",
        json_schema_extra=WARN_ON_RESUME,
    )
    hard_buffer_size: int = Field(
        4,
        ge=0,
        le=65_536,
        description="Hard samples stored, replayed, and used to estimate importance; 0: none.",
    )
    buffer_weight: Literal["sample", "batch"] = Field(
        "sample",
        description="A stored sample counts in the loss as much as a new one (sample), or all of them "
        "together as much as the mini-batch (batch: the paper's formula).",
        json_schema_extra=WARN_ON_RESUME,
    )
    mask_absent: bool = Field(
        True,
        description="Leave classes that are not in the mini-batch out of the loss.",
        json_schema_extra=WARN_ON_RESUME,
    )
    first_block: BlockIndex = Field(0, description="First block with adapters, from 0.")
    last_blocks: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Instead of first_block: adapters in so many of the last blocks; those before them run "
        "once, without gradients.",
    )
    backprop: BackpropOptions = Field(
        BackpropOptions(), description="Approximations in back-propagation.", json_schema_extra=WARN_ON_RESUME
    )
    learning_rate: float = Field(
        5e-4, gt=0, le=10, description="Adam's step size.", json_schema_extra=WARN_ON_RESUME
    )
    optimizer: Literal["adam"] = Field("adam", description="The optimizer.")

    @model_validator(mode="after")
    def _one_beginning(self) -> OnlineLoRAOptions:
        if self.first_block and self.last_blocks is not None:
            raise PydanticCustomError("both", "'first_block' and 'last_blocks' say the same: give one")
        return self
