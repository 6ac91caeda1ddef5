"""Options of the shift detectors."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from streamcl.config.options.base import Args, Options, Warn
from streamcl.config.options.variants import ClassOptions, PluginOptions, by_name, variant


class DetectorOptions(Options):
    """Options that all detectors of losses share."""

    min_samples: Warn[int] = Field(
        16,
        ge=1,
        le=100_000,
        description="Least number of samples in a mean loss; smaller batches are joined with the next one.",
    )


class PlateauOptions(DetectorOptions):
    """The paper's absolute rule on a window of batch losses (arXiv 2411.05663)."""

    name: Literal["plateau"] = Field("plateau", description="The paper's rule, with absolute thresholds.")
    window: int = Field(5, ge=2, le=10_000, description="Number of batches in the window.")
    mean_threshold: Warn[float] = Field(
        2.6, gt=0, le=1e6, description="Plateau below this mean loss, in nats."
    )
    variance_threshold: Warn[float] = Field(
        0.03, gt=0, le=1e12, description="Plateau below this variance, in nats squared."
    )


class RelativeRiseOptions(DetectorOptions):
    """A scale-free rule that needs no tuning per data set."""

    name: Literal["relative_rise"] = Field("relative_rise", description="Scale-free; the default.")
    loss_threshold: Warn[float] = Field(
        2.8, gt=0, le=100, description="Rise of the loss, in standard errors, that is reported as a shift."
    )
    feature_threshold: Warn[float | None] = Field(
        3.5,
        gt=0,
        le=100,
        description="The same for the distance of batches in frozen features; null: features are not read.",
    )
    label_threshold: Warn[float | None] = Field(
        10_000.0,
        gt=0,
        le=1e12,
        description="Other classes than before are a shift, by chance no more often than once in so many "
        "samples; null: labels are not read.",
    )


class RiverOptions(DetectorOptions):
    """Any drift detector of River."""

    name: Literal["river"] = Field("river", description="A drift detector of River.")
    detector: str = Field(
        pattern=r"^[A-Za-z_]\w*$",
        examples=["ADWIN", "PageHinkley", "KSWIN"],
        description="A class of river.drift.",
    )
    args: Args = Field({}, description="Keyword arguments for the detector.")


class NoDetectorOptions(Options):
    """No detection: one segment, no consolidation."""

    name: Literal["none"] = Field("none", description="No detection.")


ShiftOptions: TypeAlias = Annotated[
    Annotated[PlateauOptions, Tag("plateau")]
    | Annotated[RelativeRiseOptions, Tag("relative_rise")]
    | Annotated[RiverOptions, Tag("river")]
    | Annotated[NoDetectorOptions, Tag("none")]
    | Annotated[ClassOptions, Tag("class")]
    | Annotated[PluginOptions, Tag("plugin")],
    Discriminator(variant),
    by_name("relative_rise"),
]
