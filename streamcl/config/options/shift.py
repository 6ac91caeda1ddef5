"""Options of the detectors of shifts."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from streamcl.config.options.base import WARN, Args, Options
from streamcl.config.options.variants import ByClass, ByPlugin, by_name, variant


class DetectorOptions(Options):
    """What all detectors of losses share."""

    min_samples: int = Field(
        16,
        ge=1,
        le=100_000,
        description="Samples whose mean loss is looked at, at least; smaller batches wait for the next one.",
        json_schema_extra=WARN,
    )


class Plateau(DetectorOptions):
    """The paper's absolute rule on a window of batch losses (arXiv 2411.05663)."""

    name: Literal["plateau"] = Field("plateau", description="The paper's rule, with absolute thresholds.")
    window: int = Field(5, ge=2, le=10_000, description="Batches whose losses are looked at.")
    mean_threshold: float = Field(
        2.6, gt=0, le=1e6, description="Plateau below this mean loss, in nats.", json_schema_extra=WARN
    )
    variance_threshold: float = Field(
        0.03,
        gt=0,
        le=1e12,
        description="Plateau below this variance, in nats squared.",
        json_schema_extra=WARN,
    )


class RelativeRise(DetectorOptions):
    """A scale-free rule that needs no tuning per data set."""

    name: Literal["relative_rise"] = Field("relative_rise", description="Scale-free; the default.")
    loss_threshold: float = Field(
        2.8,
        gt=0,
        le=100,
        description="Standard errors that the loss must rise by before a shift is reported.",
        json_schema_extra=WARN,
    )
    feature_threshold: float | None = Field(
        3.5,
        gt=0,
        le=100,
        description="The same for how far batches lie from others in frozen features; null: losses alone.",
        json_schema_extra=WARN,
    )


class River(DetectorOptions):
    """Any drift detector of River."""

    name: Literal["river"] = Field("river", description="A detector of River's, by its class name.")
    detector: str = Field(
        pattern=r"^[A-Za-z_]\w*$",
        examples=["ADWIN", "PageHinkley", "KSWIN"],
        description="A class of river.drift.",
    )
    args: Args = Field({}, description="Keyword arguments for the detector.")


class NoShift(Options):
    """No detection: one segment, no consolidation."""

    name: Literal["none"] = Field("none", description="Look for no shifts.")


ShiftOptions: TypeAlias = Annotated[
    Annotated[Plateau, Tag("plateau")]
    | Annotated[RelativeRise, Tag("relative_rise")]
    | Annotated[River, Tag("river")]
    | Annotated[NoShift, Tag("none")]
    | Annotated[ByClass, Tag("class")]
    | Annotated[ByPlugin, Tag("plugin")],
    Discriminator(variant),
    by_name("relative_rise"),
]
