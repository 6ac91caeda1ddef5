"""The options of any learner, and what the backbone's depth allows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamcl.config.options.baselines import (
    DarkReplayOptions,
    ElasticConsolidation,
    ExperienceReplayOptions,
    FrozenLinear,
    NaiveLora,
)
from streamcl.config.options.closed_form import NearestMean, Ridge, StreamingLda
from streamcl.config.options.hybrid import CohortOptions, Hybrid, Mixed
from streamcl.config.options.online_lora import OnlineLora
from streamcl.config.options.variants import by_name, variant

LearnerOptions: TypeAlias = Annotated[
    Annotated[OnlineLora, Tag("online_lora")]
    | Annotated[Ridge, Tag("ridge")]
    | Annotated[Hybrid, Tag("hybrid")]
    | Annotated[Mixed, Tag("mixed")]
    | Annotated[CohortOptions, Tag("cohorts")]
    | Annotated[NearestMean, Tag("ncm")]
    | Annotated[StreamingLda, Tag("slda")]
    | Annotated[FrozenLinear, Tag("frozen_linear")]
    | Annotated[NaiveLora, Tag("naive_lora")]
    | Annotated[ExperienceReplayOptions, Tag("er")]
    | Annotated[DarkReplayOptions, Tag("der_pp")]
    | Annotated[ElasticConsolidation, Tag("ewc_pp")],
    Discriminator(variant),
    by_name("hybrid"),
]


def beyond_depth(learner: Any, depth: int) -> list[InitErrorDetails]:
    """A fault for each block that a learner's options name and a backbone of that depth has not."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(
                "conflict",
                "{why}",
                {"why": f"block {block} does not exist; backbone.depth keeps blocks 0 to {depth - 1}"},
            ),
            loc=path,
            input=block,
        )
        for path, block in _named_blocks(learner)
        if block >= depth
    ]


def _named_blocks(learner: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The backbone blocks that a learner's options name, each with its location as pydantic tells it."""
    for inner in ((), ("ridge",), ("lora",)):
        options = getattr(learner, inner[0], None) if inner else learner
        for index, block in enumerate(getattr(options, "blocks", None) or ()):
            yield (learner.name, *inner, "blocks", index), block
        if (first := getattr(options, "first_block", None)) is not None:
            yield (learner.name, *inner, "first_block"), first
