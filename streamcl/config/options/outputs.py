"""Options of evaluation, checkpoints, metrics sinks and the report."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from streamcl.config.options.base import Options, Seconds, Share, Warn
from streamcl.config.options.variants import ClassOptions, PluginOptions, by_name, variant


class EvaluateOptions(Options):
    """Which samples are held out, and when to evaluate on them."""

    hold_out: Warn[Share] = Field(
        0.05,
        description="Share of the labelled records that are predicted and never learned, chosen by a hash of "
        "the id. Only where the source has no held-out samples of its own; the first 20 of each class are "
        "learned. 0: none.",
    )
    max_held_out: Warn[int] = Field(
        256, ge=1, le=10_000, description="Of those the number that is kept; most of the others are learned."
    )

    every_samples: int | None = Field(
        1000, ge=1, le=10**12, description="Samples between evaluations; null: never."
    )
    at_part_end: bool = Field(True, description="Also at the end of each known part of the stream.")
    max_per_part: int | None = Field(
        None, ge=1, le=10**9, description="Held-out samples per part; null: all."
    )
    at_stream_end: bool = Field(True, description="Also at the end of the stream.")


class CheckpointOptions(Options):
    """When checkpoints are written, and what is promised of them."""

    every_samples: int = Field(2000, ge=1, le=10**12, description="Samples between checkpoints.")
    every_seconds: Seconds | None = Field(
        60.0, description="Also after that time, where records have been learned since; null: never."
    )
    keep: int = Field(2, ge=1, le=1000, description="Number of newest checkpoints that are kept.")
    delivery: Literal["best_effort", "exactly_once"] = Field(
        "best_effort",
        description="exactly_once: refuse a source that cannot be replayed after a crash.",
    )


class TensorBoardOptions(Options):
    """Metrics as TensorBoard files in the run directory."""

    name: Literal["tensorboard"] = Field("tensorboard", description="Needs the extra 'tensorboard'.")


class MLflowOptions(Options):
    """Metrics to an MLflow server or folder."""

    name: Literal["mlflow"] = Field("mlflow", description="Needs the extra 'mlflow'.")
    uri: str | None = Field(None, min_length=1, description="Tracking URI; null: MLflow's own default.")
    experiment: str | None = Field(None, min_length=1, description="Experiment; null: MLflow's own default.")


SinkOptions: TypeAlias = Annotated[
    Annotated[TensorBoardOptions, Tag("tensorboard")]
    | Annotated[MLflowOptions, Tag("mlflow")]
    | Annotated[ClassOptions, Tag("class")]
    | Annotated[PluginOptions, Tag("plugin")],
    Discriminator(variant),
    by_name(),
]


class ReportOptions(Options):
    """Contents of report.html."""

    samples: int = Field(8, ge=0, le=256, description="Images shown at each shift.")
    title: str | None = Field(None, max_length=500, description="Heading; null: the run's name.")
