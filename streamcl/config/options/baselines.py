"""Options of the baselines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN_ON_RESUME, BlockIndex, Options


class BaselineOptions(Options):
    """Options that all baselines with gradient steps share."""

    learning_rate: float = Field(
        5e-4, gt=0, le=10, description="Step size.", json_schema_extra=WARN_ON_RESUME
    )


class FrozenLinearOptions(BaselineOptions):
    """A frozen backbone and a linear head trained by SGD: the baseline without adapters."""

    name: Literal["frozen_linear"] = Field("frozen_linear", description="Frozen features, linear head, SGD.")
    learning_rate: float = Field(
        1e-2, gt=0, le=10, description="SGD's step size.", json_schema_extra=WARN_ON_RESUME
    )


class AdaptedBaselineOptions(BaselineOptions):
    """Options that all baselines with LoRA adapters share; their optimizer is Adam."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: BlockIndex = Field(0, description="First block with adapters, from 0.")


class NaiveLoRAOptions(AdaptedBaselineOptions):
    """LoRA and a linear head, fine-tuned on the stream in its order: the baseline without any remedy."""

    name: Literal["naive_lora"] = Field("naive_lora", description="Sequential LoRA and nothing else.")


class ReplayOptions(AdaptedBaselineOptions):
    """Experience replay from a reservoir of raw images (arXiv 1902.10486)."""

    name: Literal["er"] = Field("er", description="LoRA with experience replay.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images in the reservoir.")


class DarkReplayOptions(AdaptedBaselineOptions):
    """DER++: replay of images and of the logits predicted when they were stored (arXiv 2004.07211)."""

    name: Literal["der_pp"] = Field("der_pp", description="LoRA with replay of images and logits.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images in the reservoir.")
    alpha: float = Field(
        0.1, ge=0, le=1e6, description="Weight of old logits.", json_schema_extra=WARN_ON_RESUME
    )
    beta: float = Field(
        0.5, ge=0, le=1e6, description="Weight of old labels.", json_schema_extra=WARN_ON_RESUME
    )


class EWCOptions(AdaptedBaselineOptions):
    """EWC++ on adapters and head (arXiv 1801.10112)."""

    name: Literal["ewc_pp"] = Field("ewc_pp", description="LoRA with EWC++.")
    strength: float = Field(
        100.0, ge=0, le=1e12, description="Lambda: weight of the penalty.", json_schema_extra=WARN_ON_RESUME
    )
    decay: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Decay of the running importance at each step.",
        json_schema_extra=WARN_ON_RESUME,
    )
