"""The options of a whole run, and the document that they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from streamcl.config.document import Document, KeyPath, Problem, Variable, config_error
from streamcl.config.options.answer import AnswerOptions
from streamcl.config.options.backbone import BackboneOptions
from streamcl.config.options.base import Options, Safe, Seconds, Seed, Warn
from streamcl.config.options.batch import BatchOptions, OverloadOptions, by_size
from streamcl.config.options.forget import ForgettingOptions
from streamcl.config.options.labels import LabelOptions
from streamcl.config.options.learner import (
    LearnerOptions,
    blocks_beyond_depth,
    conflict,
    default_learner,
    learner_factory,
    learner_name,
)
from streamcl.config.options.outputs import CheckpointOptions, EvaluateOptions, ReportOptions, SinkOptions
from streamcl.config.options.scenario import ScenarioOptions
from streamcl.config.options.shift import RelativeRiseOptions, ShiftOptions
from streamcl.config.options.source import SourceOptions
from streamcl.config.options.variants import ClassOptions, PluginOptions, by_name
from streamcl.errors import ConfigError

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


class DistributedOptions(Options):
    """Several processes of one run (torchrun); a single process ignores these options."""

    data: Warn[Literal["auto", "replicated", "sharded"]] = Field(
        "auto",
        description="replicated: each rank reads the whole stream and decodes its share of every batch, so "
        "the result is that of one process; sharded: each reads a part of its own; auto: sharded for a class "
        "of yours with shard(rank, world), else replicated.",
    )
    timeout: float = Field(1800.0, gt=0, le=10**6, description="Seconds that a rank waits for another one.")


class RunConfig(Options):
    """A run of streamcl: its source, learner, detector and outputs."""

    name: Safe[str] = Field(
        "run",
        pattern=_NAME,
        max_length=100,
        examples=["my-run_1"],
        description="Letters, digits, '.', '_', '-'; by default the file's name without its ending.",
    )
    seed: Seed = Field(0, description="Seed of all random generators of the run.")
    run_dir: Safe[str | None] = Field(None, min_length=1, description="Where results go; null: runs/<name>.")
    source: Annotated[SourceOptions, by_name()] = Field(description="The stream.")
    scenario: ScenarioOptions | None = Field(None, description="Order of the source; null: its own.")
    batch: Annotated[BatchOptions, by_size()] = Field(
        BatchOptions(), description="How records are put into batches."
    )
    max_samples: Safe[int | None] = Field(
        None, ge=1, le=10**15, description="Stop after that many samples; null: at the end."
    )
    backbone: Annotated[BackboneOptions, by_name()] = Field(
        BackboneOptions(), description="The frozen vision transformer."
    )
    learner: LearnerOptions = Field(default_learner(), description="The learner.")
    shift: ShiftOptions = Field(RelativeRiseOptions(), description="The shift detector.")
    precision: Warn[Literal["auto", "32-true", "bf16-mixed"]] = Field(
        "auto", description="auto: bf16 where a measurement at the start finds it faster."
    )
    device: Warn[str] = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        examples=["auto", "cpu", "cuda", "cuda:0"],
        description="auto, cpu, cuda, or cuda:N.",
    )
    threads: Warn[int | None] = Field(None, ge=1, le=1024, description="CPU threads; null: torch's choice.")
    answer: Safe[AnswerOptions] = Field(AnswerOptions(), description="Further statements about predictions.")
    evaluate: Safe[EvaluateOptions] = Field(EvaluateOptions(), description="Evaluation on held-out samples.")
    checkpoint: Safe[CheckpointOptions | None] = Field(
        CheckpointOptions(), description="Checkpoints; null: the run cannot be resumed."
    )
    overload: Safe[Annotated[OverloadOptions, by_name("wait")]] = Field(
        OverloadOptions(), description="Where a live source brings more than can be learned."
    )
    flush: Safe[Seconds | None] = Field(
        1.0, description="Predictions, metrics and events are on disk within that time; null: at checkpoints."
    )
    labels: Warn[LabelOptions | None] = Field(
        None,
        description="Records without a label wait for one that comes later; null: they are predicted only.",
    )
    forgetting: ForgettingOptions = Field(
        ForgettingOptions(), description="Requests to forget, statistics for them, and tests after shifts."
    )
    distributed: Safe[DistributedOptions] = Field(
        DistributedOptions(), description="Several processes on one run."
    )
    max_skipped: Safe[int] = Field(
        10, ge=1, le=10**6, description="Consecutive steps with non-finite numbers before the run fails."
    )
    sinks: Safe[list[SinkOptions]] = Field([], max_length=32, description="Further sinks of metrics.")
    report: Safe[ReportOptions] = Field(ReportOptions(), description="The report.")

    _origin: _Origin = PrivateAttr(default_factory=lambda: _Origin(Document()))

    @field_validator("learner")
    @classmethod
    def _within_depth(cls, learner: Any, info: ValidationInfo) -> Any:
        depth = info.data["backbone"].depth if "backbone" in info.data else None
        if depth is not None and (faults := blocks_beyond_depth(learner, depth)):
            raise ValidationError.from_exception_data("RunConfig", faults)
        return learner

    @field_validator("forgetting")
    @classmethod
    def _has_sums(cls, forgetting: ForgettingOptions, info: ValidationInfo) -> ForgettingOptions:
        learner, wanted = info.data.get("learner"), forgetting.keep_statistics
        if wanted is None or learner is None or isinstance(learner, ClassOptions | PluginOptions):
            return forgetting  # a user's learner is checked when the run is assembled
        if not learner_factory(learner).keeps_statistics:
            why = f"{learner_name(learner)} has no sums of squares to keep; take ridge, slda or ridge_lora"
            if learner_factory(learner).keeps_traces:
                why = f"{learner_name(learner)} keeps traces of single samples, which serve every request"
            fault = conflict(why, ("keep_statistics",), wanted)
            raise ValidationError.from_exception_data("RunConfig", [fault])
        return forgetting

    def without_requests(self) -> RunConfig:
        """Return a copy for the run directory: requests name what is to be forgotten, so none is kept."""
        forgetting = self.forgetting.model_copy(update={"requests": []})
        return self.model_copy(update={"forgetting": forgetting})

    @property
    def variables(self) -> Mapping[KeyPath, Variable]:
        """The values that came from the environment, as they were written, by their paths of keys."""
        return self._origin.document.variables

    def refuse(self, path: str, message: str) -> ConfigError:
        """Return an error about the option at `path`, such as "learner.rank", with its location.

        For faults that only a later stage finds: a rank beyond the backbone's width, an unknown source.
        """
        keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
        return config_error([Problem(self._origin.document.place(keys), f"{path}: {message}")])


class _Origin:
    """The document of a configuration; two configurations that differ only in this are equal."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, document: Document) -> None:
        self.document = document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin)


def remember_origin(config: RunConfig, document: Document) -> None:
    """Let `config.refuse` name locations in `document`."""
    config._origin = _Origin(document)
