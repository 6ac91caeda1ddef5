"""Options of the scenario: the order of a source's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from streamcl.config.options.base import DURATION, Options, Seed, distinct, seconds
from streamcl.config.options.variants import by_name, variant

MAX_LABEL_DELAY = 10**9  # records


def _checked_delay(value: int | str) -> int | str:
    """Return the delay. Raise where it is a text without a unit, or negative."""
    if isinstance(value, str):
        seconds(value)
    elif not 0 <= value <= MAX_LABEL_DELAY:
        raise PydanticCustomError(
            "delay", "is no number of records from 0 to 10**9, and no duration such as 30m"
        )
    return value


LabelDelay: TypeAlias = Annotated[
    int | str,
    Field(union_mode="left_to_right"),
    AfterValidator(_checked_delay),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": DURATION}]}),
]
"""A number of records, or a duration with its unit."""


class ScenarioBase(Options):
    """Options that all orders share."""

    delay: LabelDelay | None = Field(
        None,
        description="Labels come so many records (100), or so long (30m, by the clock that `rate` gives), "
        "after their records, as if each had to be made first (needs a block labels); null: with them.",
    )
    rate: float | None = Field(
        None,
        gt=0,
        le=10**9,
        description="Records a second of a clock that the data set then has, for `delay` and for "
        "`labels.wait`; nothing waits for it. null: no clock.",
    )


class OwnOrderOptions(ScenarioBase):
    """The order that the source has without a scenario."""

    name: Literal["own_order"] = Field(
        "own_order", description="The order that the source has without a scenario."
    )


class AsIsOptions(ScenarioBase):
    """The order in which the data set is stored."""

    name: Literal["as_is"] = Field("as_is", description="The order in which the data set is stored.")


class IIDOptions(ScenarioBase):
    """One seeded shuffle of everything."""

    name: Literal["iid"] = Field("iid", description="Shuffle the whole stream once.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class DisjointOptions(ScenarioBase):
    """The classes in equal parts, one part after the other."""

    name: Literal["disjoint"] = Field("disjoint", description="Classes come in parts that share none.")
    parts: int = Field(10, ge=1, le=10_000, description="Number of parts.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class SiBlurryOptions(ScenarioBase):
    """Stochastic, blurry parts of random size (Si-Blurry, arXiv 2308.09303)."""

    name: Literal["si_blurry"] = Field(
        "si_blurry", description="Parts of random size, some classes in all of them."
    )
    parts: int = Field(5, ge=1, le=10_000, description="Number of parts.")
    disjoint_percent: int = Field(
        50, ge=0, le=100, description="Percentage of the classes that occur in one part only."
    )
    blurry_percent: int = Field(
        10, ge=0, le=100, description="Percentage of the other classes' samples that move to other parts."
    )
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class DomainIncrementalOptions(ScenarioBase):
    """One domain after the other, with all classes in each."""

    name: Literal["domain_incremental"] = Field(
        "domain_incremental", description="One domain after the other."
    )
    order: Annotated[list[str] | None, AfterValidator(distinct)] = Field(
        None, min_length=1, description="Domains in order; null: the source's order."
    )
    seed: Seed | None = Field(None, description="Seed of the order inside a domain; null: the run's.")


class NewInstancesAndClassesOptions(ScenarioBase):
    """CORe50's NIC: parts that bring new classes and new views of old ones."""

    name: Literal["new_instances_and_classes"] = Field(
        "new_instances_and_classes", description="New classes and new domains of known ones (CORe50's NIC)."
    )
    parts: int = Field(10, ge=1, le=10_000, description="Number of class groups.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


def _has_no_order(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and value.keys() <= {"delay", "rate"}


ScenarioOptions: TypeAlias = Annotated[
    Annotated[OwnOrderOptions, Tag("own_order")]
    | Annotated[AsIsOptions, Tag("as_is")]
    | Annotated[IIDOptions, Tag("iid")]
    | Annotated[DisjointOptions, Tag("disjoint")]
    | Annotated[SiBlurryOptions, Tag("si_blurry")]
    | Annotated[DomainIncrementalOptions, Tag("domain_incremental")]
    | Annotated[NewInstancesAndClassesOptions, Tag("new_instances_and_classes")],
    Discriminator(variant),
    by_name(),
    BeforeValidator(lambda value: {"name": "own_order", **value} if _has_no_order(value) else value),
]
