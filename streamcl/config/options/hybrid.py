"""Options of the learners that join a closed form and adapters: hybrid, mixed privacy and cohorts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamcl.config.options.base import WARN, Block, Options
from streamcl.config.options.closed_form import RidgeOptions


class HybridAdapterOptions(Options):
    """The adapted branch of the hybrid learner."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    first_block: Block | None = Field(
        None, description="First block with adapters, from 0; null: after the first third."
    )
    learning_rate: float = Field(3e-3, gt=0, le=10, description="Adam's step size.", json_schema_extra=WARN)
    steps: int = Field(
        3, ge=1, le=100, description="Optimizer steps a batch while it adapts.", json_schema_extra=WARN
    )
    adapt: int = Field(
        832,
        ge=0,
        le=10**9,
        description="Labelled samples after which the adapters settle, if no plateau comes first; 0: none.",
        json_schema_extra=WARN,
    )


class HybridRidgeOptions(RidgeOptions):
    """The closed-form branch of the hybrid learner."""

    views: Literal[1, 2] = Field(
        2, description="2: the mean over an image and its mirrored inner part; twice the cost."
    )


class Hybrid(Options):
    """The ridge head remembers and forgets exactly; adapters supply what the frozen features lack."""

    name: Literal["hybrid"] = Field("hybrid", description="Ridge head and adapters together; the default.")
    ridge: HybridRidgeOptions = Field(HybridRidgeOptions(), description="The closed-form branch.")
    lora: HybridAdapterOptions = Field(HybridAdapterOptions(), description="The adapted branch.")


class UserOptions(Options):
    """What samples of users train: weights that are linear around the core's (arXiv 2012.13431)."""

    tangents: int = Field(
        256, ge=0, le=16_384, description="Width of the sketch of LoRA's tangent features; 0: none of them."
    )
    blocks: int = Field(1, ge=1, le=512, description="Last blocks whose LoRA is linearised.")
    shrinkage: float = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples.",
        json_schema_extra=WARN,
    )
    noise: float = Field(
        1e-3,
        ge=0,
        le=1e3,
        description="Standard deviation of the noise on the weights in use, in units of 1 / their feature's; "
        "0: none, and no bound.",
        json_schema_extra=WARN,
    )
    cohorts: int = Field(
        64,
        ge=0,
        le=100_000,
        description="Subjects whose sums are kept apart; later ones are forgotten by their samples only.",
        json_schema_extra=WARN,
    )


class Mixed(Options):
    """Mixed privacy: a hybrid that only core samples train, and the users' linear part on top."""

    name: Literal["mixed"] = Field("mixed", description="Core samples train all, users a linear part.")
    ridge: HybridRidgeOptions = Field(HybridRidgeOptions(), description="The core's closed-form branch.")
    lora: HybridAdapterOptions = Field(HybridAdapterOptions(), description="The core's adapted branch.")
    users: UserOptions = Field(UserOptions(), description="The users' part.")


class CohortAdapterOptions(HybridAdapterOptions):
    """The adapter that each cohort has."""

    adapt: int = Field(
        256,
        ge=1,
        le=10**9,
        description="Labelled samples of a cohort after which its adapter settles.",
        json_schema_extra=WARN,
    )


class CohortRidgeOptions(HybridRidgeOptions):
    """The part that cohorts share."""

    margin: None = Field(None, description="Not for this learner.")


class CohortOptions(Options):
    """Cohorts with adapters of their own, each of which can be forgotten whole and exactly."""

    name: Literal["cohorts"] = Field("cohorts", description="An adapter for each cohort.")
    by: Literal["domain", "subject", "stretch"] = Field(
        "domain", description="What makes a cohort: a domain (a tenant), a subject, or a stretch of records."
    )
    stretch: int = Field(1000, ge=1, le=10**12, description="Where by is stretch: records of a cohort.")
    limit: int = Field(8, ge=1, le=1000, description="Cohorts with an adapter; later ones have none.")
    ridge: CohortRidgeOptions = Field(CohortRidgeOptions(), description="The shared closed-form part.")
    lora: CohortAdapterOptions = Field(CohortAdapterOptions(), description="The adapters.")
