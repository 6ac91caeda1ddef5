"""The union of all learners' options, and checks of them against the backbone's depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamcl.config.options.baselines import (
    DarkReplayOptions,
    EWCOptions,
    FrozenLinearOptions,
    NaiveLoRAOptions,
    ReplayOptions,
)
from streamcl.config.options.closed_form import NearestMeanOptions, RidgeLearnerOptions, StreamingLDAOptions
from streamcl.config.options.online_lora import OnlineLoRAOptions
from streamcl.config.options.ridge_lora import CohortAdaptersOptions, MixedPrivacyOptions, RidgeLoRAOptions
from streamcl.config.options.variants import by_name, variant

LearnerOptions: TypeAlias = Annotated[
    Annotated[OnlineLoRAOptions, Tag("online_lora")]
    | Annotated[RidgeLearnerOptions, Tag("ridge")]
    | Annotated[RidgeLoRAOptions, Tag("ridge_lora")]
    | Annotated[MixedPrivacyOptions, Tag("mixed_privacy")]
    | Annotated[CohortAdaptersOptions, Tag("cohort_adapters")]
    | Annotated[NearestMeanOptions, Tag("ncm")]
    | Annotated[StreamingLDAOptions, Tag("slda")]
    | Annotated[FrozenLinearOptions, Tag("frozen_linear")]
    | Annotated[NaiveLoRAOptions, Tag("naive_lora")]
    | Annotated[ReplayOptions, Tag("er")]
    | Annotated[DarkReplayOptions, Tag("der_pp")]
    | Annotated[EWCOptions, Tag("ewc_pp")],
    Discriminator(variant),
    by_name("ridge_lora"),
]


def beyond_depth(learner: Any, depth: int) -> list[InitErrorDetails]:
    """Return a fault for each block that a learner's options name and a backbone of that depth lacks."""
    kept = f"backbone.depth keeps blocks 0 to {depth - 1}"
    return [
        conflict(f"block {block} does not exist; {kept}", path, block)
        for path, block in _named_blocks(learner)
        if block >= depth
    ]


def conflict(why: str, path: tuple[str | int, ...], value: Any) -> InitErrorDetails:
    """Return pydantic's form of a fault at `path`, where two options do not go together."""
    return InitErrorDetails(
        type=PydanticCustomError("conflict", "{why}", {"why": why}), loc=path, input=value
    )


def _named_blocks(learner: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield (location in pydantic's form, index) of each transformer block that a learner's options name."""
    for inner in ((), ("ridge",), ("lora",)):
        options = getattr(learner, inner[0], None) if inner else learner
        for index, block in enumerate(getattr(options, "blocks", None) or ()):
            yield (learner.name, *inner, "blocks", index), block
        if (first := getattr(options, "first_block", None)) is not None:
            yield (learner.name, *inner, "first_block"), first
