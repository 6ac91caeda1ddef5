"""Options of the learners with a closed form and adapters: ridge_lora, mixed_privacy, cohort_adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN_ON_RESUME, BlockIndex, Options
from streamcl.config.options.closed_form import RidgeOptions


class LoRABranchOptions(Options):
    """LoRA on the last blocks, trained at the beginning of the stream and then frozen."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: BlockIndex | None = Field(
        None, description="First block with adapters, from 0; null: after the first third."
    )
    learning_rate: float = Field(
        3e-3, gt=0, le=10, description="Adam's step size.", json_schema_extra=WARN_ON_RESUME
    )
    steps: int = Field(
        3,
        ge=1,
        le=100,
        description="Optimizer steps per batch during warm-up.",
        json_schema_extra=WARN_ON_RESUME,
    )
    warmup_samples: int = Field(
        832,
        ge=0,
        le=10**9,
        description="Labelled samples after which the adapters freeze, or at a plateau before that; 0: none.",
        json_schema_extra=WARN_ON_RESUME,
    )


class RidgeBranchOptions(RidgeOptions):
    """A ridge head on the frozen backbone, over two views of each image by default."""

    tta_views: Literal[1, 2] = Field(
        2, description="2: the mean over an image and its mirrored inner part; twice the cost."
    )


class RidgeLoRAOptions(Options):
    """A ridge head that forgets exactly, and adapters for what the frozen features lack."""

    name: Literal["ridge_lora"] = Field(
        "ridge_lora", description="Ridge head and adapters together; the default."
    )
    ridge: RidgeBranchOptions = Field(RidgeBranchOptions(), description="The closed-form branch.")
    lora: LoRABranchOptions = Field(LoRABranchOptions(), description="The adapted branch.")


class UserOptions(Options):
    """The linear part that samples of users train, around the core's weights (arXiv 2012.13431)."""

    tangents: int = Field(
        256, ge=0, le=16_384, description="Width of the sketch of LoRA's tangent features; 0: none of them."
    )
    linearised_blocks: int = Field(1, ge=1, le=512, description="Last blocks whose LoRA is linearised.")
    variance_ridge: float = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples.",
        json_schema_extra=WARN_ON_RESUME,
    )
    noise: float = Field(
        1e-3,
        ge=0,
        le=1e3,
        description="Standard deviation of the noise on the weights in use, in units of 1 / their feature's; "
        "0: none, and no bound.",
        json_schema_extra=WARN_ON_RESUME,
    )
    max_tracked_subjects: int = Field(
        64,
        ge=0,
        le=100_000,
        description="Subjects with sums of their own; later ones are forgotten by their samples only.",
        json_schema_extra=WARN_ON_RESUME,
    )


class MixedPrivacyOptions(Options):
    """Mixed privacy: a ridge_lora learner that only core samples train, and the users' linear part on top."""

    name: Literal["mixed_privacy"] = Field(
        "mixed_privacy", description="Core samples train all, users a linear part."
    )
    ridge: RidgeBranchOptions = Field(RidgeBranchOptions(), description="The core's closed-form branch.")
    lora: LoRABranchOptions = Field(LoRABranchOptions(), description="The core's adapted branch.")
    users: UserOptions = Field(UserOptions(), description="The users' part.")


class CohortLoRAOptions(LoRABranchOptions):
    """The adapter of each cohort."""

    warmup_samples: int = Field(
        256,
        ge=1,
        le=10**9,
        description="Labelled samples of a cohort after which its adapter freezes.",
        json_schema_extra=WARN_ON_RESUME,
    )


class CohortRidgeOptions(RidgeBranchOptions):
    """The closed-form part that all cohorts share."""

    gcv_margin: None = Field(None, description="Not for this learner.")


class CohortAdaptersOptions(Options):
    """Cohorts with adapters of their own, each of which can be forgotten whole and exactly."""

    name: Literal["cohort_adapters"] = Field("cohort_adapters", description="An adapter for each cohort.")
    cohort_by: Literal["domain", "subject", "offset_range"] = Field(
        "domain", description="What makes a cohort: a domain (a tenant), a subject, or a range of offsets."
    )
    records_per_cohort: int = Field(
        1000, ge=1, le=10**12, description="Records of a cohort where cohort_by is offset_range."
    )
    max_adapters: int = Field(
        8, ge=1, le=1000, description="Most cohorts with an adapter; later ones have none."
    )
    ridge: CohortRidgeOptions = Field(CohortRidgeOptions(), description="The shared closed-form part.")
    lora: CohortLoRAOptions = Field(CohortLoRAOptions(), description="The adapters.")
