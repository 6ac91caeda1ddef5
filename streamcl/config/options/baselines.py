"""Options of the learners that others are compared with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN, Block, Options


class BaselineOptions(Options):
    """What all baselines that take gradient steps share."""

    learning_rate: float = Field(5e-4, gt=0, le=10, description="Step size.", json_schema_extra=WARN)


class FrozenLinear(BaselineOptions):
    """A frozen backbone and a linear head trained by SGD: the baseline without adapters."""

    name: Literal["frozen_linear"] = Field("frozen_linear", description="Frozen features, linear head, SGD.")
    learning_rate: float = Field(1e-2, gt=0, le=10, description="SGD's step size.", json_schema_extra=WARN)


class AdaptedBaselineOptions(BaselineOptions):
    """What all baselines with LoRA adapters share; Adam takes the steps."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: Block = Field(0, description="First block with adapters, from 0.")


class NaiveLora(AdaptedBaselineOptions):
    """LoRA and a linear head, fine-tuned on the stream as it comes: the baseline without a remedy."""

    name: Literal["naive_lora"] = Field("naive_lora", description="Sequential LoRA and nothing else.")


class ExperienceReplayOptions(AdaptedBaselineOptions):
    """Experience replay with a reservoir of raw images (arXiv 1902.10486)."""

    name: Literal["er"] = Field("er", description="LoRA with rehearsal.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images held.")


class DarkReplayOptions(AdaptedBaselineOptions):
    """DER++: rehearsal of images and of the logits that they had (arXiv 2004.07211)."""

    name: Literal["der_pp"] = Field("der_pp", description="LoRA with rehearsal of logits.")
    replay_size: int = Field(500, ge=1, le=10**6, description="Images held.")
    alpha: float = Field(0.1, ge=0, le=1e6, description="Weight of old logits.", json_schema_extra=WARN)
    beta: float = Field(0.5, ge=0, le=1e6, description="Weight of old labels.", json_schema_extra=WARN)


class ElasticConsolidation(AdaptedBaselineOptions):
    """EWC++ on adapters and head (arXiv 1801.10112)."""

    name: Literal["ewc_pp"] = Field("ewc_pp", description="LoRA with EWC++.")
    strength: float = Field(
        100.0, ge=0, le=1e12, description="Lambda: weight of the penalty.", json_schema_extra=WARN
    )
    decay: float = Field(
        0.9, ge=0, lt=1, description="Share of the old importance at a step.", json_schema_extra=WARN
    )
