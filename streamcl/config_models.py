"""Every option of a run, documented and bounded where it is declared; `streamcl.config` reads them.

A field says with "x-on-resume" what a change of it means to a run that is resumed: "safe" (nothing learned
depends on it), "warn" (it changes what is learned from here on), or "refuse", the default (the saved state
belongs to the old value). A block's mark holds for the fields in it that carry none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamcl.errors import ConfigError
from streamcl.yaml_file import Document, Problem, refusal

SAFE: dict[str, JsonValue] = {"x-on-resume": "safe"}
WARN: dict[str, JsonValue] = {"x-on-resume": "warn"}

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Block: TypeAlias = Annotated[int, Field(ge=0, lt=512)]
Args: TypeAlias = dict[str, JsonValue]

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
_DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
_WEIGHTS = (
    r"^(pretrained|none|file:.+|local-dir:.+|hf-hub:[^/]+/.+|fetch:[\w.-]+|[^:]+\.(safetensors|pth|pt|onnx))$"
)


class Options(BaseModel):
    """Options that refuse unknown keys, conversions between types, NaN and infinity, and later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _variant(value: Any) -> str | None:
    """Which member of a union a block means: what its `name` says, or "class" or "plugin"."""
    if isinstance(value, BaseModel):
        return str(getattr(value, "name", "class" if "class_" in type(value).model_fields else "plugin"))
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            return name
        return next((kind for kind in ("class", "plugin") if "name" not in value and kind in value), None)
    return None


def _by_name(default: str | None = None) -> BeforeValidator:
    """Lets a bare name stand for its block, and a block without a name for the default one."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if default and isinstance(value, Mapping) and not {"name", "class", "plugin"} & set(value):
            return {"name": default, **value}
        return value

    return BeforeValidator(expand)


class Policy(Options):
    """What to do with records that are not plain labelled images, and the limits on what a source may do."""

    on_bad_record: Literal["quarantine", "fail"] = Field(
        "quarantine",
        description="A record that cannot become a sample: set it aside and go on, or stop the run.",
    )
    missing_label: Literal["unlabelled", "quarantine", "fail"] = Field(
        "unlabelled",
        description="A record without a label: predict but do not learn it, set it aside, or stop.",
    )
    negative_label: Literal["quarantine", "fail", "class"] = Field(
        "quarantine",
        description="A negative integer label: set it aside, stop, or take it as a class of its own.",
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=2**31,
        description="Largest image, in pixels; read from the header before decoding.",
    )
    max_side: int = Field(20_000, ge=1, le=2**20, description="Longest side of an image, in pixels.")
    max_file_bytes: int = Field(64 * 2**20, ge=1, le=2**32, description="Largest image file, in bytes.")
    max_classes: int = Field(100_000, ge=1, le=10**7, description="Most classes that a stream may bring.")
    max_quarantined: int | None = Field(
        10_000, ge=0, le=10**9, description="Records set aside before the run stops; null: no limit."
    )
    stall_timeout: float | None = Field(
        300.0,
        gt=0,
        le=10**7,
        description="Seconds without a record before the source has failed; null: wait.",
        json_schema_extra=SAFE,
    )
    retries: int = Field(
        3, ge=0, le=1000, description="Attempts to go on after the source raised.", json_schema_extra=SAFE
    )
    retry_delay: float = Field(
        0.5,
        ge=0,
        le=3600,
        description="Seconds before the first retry; doubled for each further one.",
        json_schema_extra=SAFE,
    )


class SourceOptions(Options):
    """Where the stream comes from: exactly one of a registered `name` or a `class` of your own."""

    model_config = ConfigDict(
        json_schema_extra={
            "type": ["object", "string"],
            "anyOf": [{"required": ["name"]}, {"required": ["class"]}],
            "not": {
                "type": "object",
                "required": ["name", "class"],
                "properties": {"name": {"type": "string"}, "class": {"type": "string"}},
            },
        }
    )

    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A registered source; `streamcl list sources` shows them.",
    )
    class_: str | None = Field(
        None,
        alias="class",
        pattern=_DOTTED,
        examples=["package.module:callable"],
        description="A callable of yours that returns an iterable of samples or batches.",
    )
    args: Args = Field({}, description="Keyword arguments for the source.")
    columns: dict[str, str] | None = Field(
        None,
        examples=[{"image": "img", "label": "fine_label"}],
        description="For a class of yours that yields mappings: its keys for image, label, id, subject, "
        "domain, privacy.",
    )
    deterministic: bool = Field(
        False,
        description="Your word that the class yields the same records each time; then any iterable can be "
        "resumed, by reading again what was read.",
    )
    policy: Policy = Field(Policy(), description="Bad records, limits, retries.", json_schema_extra=WARN)
    prefetch: int = Field(
        2, ge=0, le=1024, description="Batches read ahead of learning; 0: none.", json_schema_extra=SAFE
    )

    @model_validator(mode="after")
    def _one_origin(self) -> SourceOptions:
        if (self.name is None) == (self.class_ is None):
            raise PydanticCustomError("origin", "needs exactly one of 'name' and 'class'")
        return self


class AsIs(Options):
    """The source's own order."""

    name: Literal["as_is"] = Field("as_is", description="Keep the source's own order.")


class Iid(Options):
    """One seeded shuffle of everything."""

    name: Literal["iid"] = Field("iid", description="Shuffle the whole stream once.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class Disjoint(Options):
    """The classes in equal parts, one part after the other."""

    name: Literal["disjoint"] = Field("disjoint", description="Classes come in parts that share none.")
    parts: int = Field(10, ge=1, le=10_000, description="Number of parts.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class SiBlurry(Options):
    """Stochastic, blurry parts of random size (Si-Blurry, arXiv 2308.09303)."""

    name: Literal["si_blurry"] = Field(
        "si_blurry", description="Parts of random size, some classes in all of them."
    )
    parts: int = Field(5, ge=1, le=10_000, description="Number of parts.")
    disjoint_percent: int = Field(
        50, ge=0, le=100, description="Per cent of the classes that stay in one part."
    )
    blurry_percent: int = Field(
        10, ge=0, le=100, description="Per cent of the other classes' samples that change parts."
    )
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


class DomainIncremental(Options):
    """One domain after the other, with all classes in each."""

    name: Literal["domain_incremental"] = Field(
        "domain_incremental", description="One domain after the other."
    )
    order: list[str] | None = Field(
        None, min_length=1, description="Domains in order; null: the source's order."
    )
    seed: Seed | None = Field(None, description="Seed of the order inside a domain; null: the run's.")

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: list[str] | None) -> list[str] | None:
        return _distinct(order)


class NewInstancesAndClasses(Options):
    """CORe50's NIC: parts that bring new classes and new views of old ones."""

    name: Literal["new_instances_and_classes"] = Field(
        "new_instances_and_classes", description="New classes and new domains of known ones (CORe50's NIC)."
    )
    parts: int = Field(10, ge=1, le=10_000, description="Number of class groups.")
    seed: Seed | None = Field(None, description="Seed of the order; null: the run's.")


ScenarioOptions: TypeAlias = Annotated[
    Annotated[AsIs, Tag("as_is")]
    | Annotated[Iid, Tag("iid")]
    | Annotated[Disjoint, Tag("disjoint")]
    | Annotated[SiBlurry, Tag("si_blurry")]
    | Annotated[DomainIncremental, Tag("domain_incremental")]
    | Annotated[NewInstancesAndClasses, Tag("new_instances_and_classes")],
    Discriminator(_variant),
    _by_name(),
]


class BackboneOptions(Options):
    """The frozen vision transformer and where its weights come from."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    name: str = Field(
        "vit_small_patch14_dinov2", pattern=r"^[\w.:/-]+$", max_length=200, description="A timm model."
    )
    weights: str = Field(
        "pretrained",
        pattern=_WEIGHTS,
        examples=[
            "pretrained",
            "none",
            "file:PATH",
            "local-dir:PATH",
            "hf-hub:owner/name",
            "fetch:vit-s-focus",
        ],
        description="pretrained: timm's own; none: random, for tests; file:PATH (or a path that ends in "
        ".safetensors, .pth or .onnx), local-dir:PATH, hf-hub:owner/name, or fetch:NAME.",
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="Side in pixels; null: the model's own.")
    depth: int | None = Field(None, ge=1, le=512, description="Keep the first blocks only; null: all.")
    args: Args = Field({}, description="Further keyword arguments for timm.create_model.")


class AdapterOptions(Options):
    """What all learners with LoRA adapters share."""

    rank: int = Field(4, ge=1, le=1024, description="Rank of each adapter; at most the backbone's width.")
    regularisation: float = Field(
        2000.0,
        ge=0,
        le=1e9,
        description="Lambda: weight of the importance penalty (arXiv 2411.05663).",
        json_schema_extra=WARN,
    )
    buffer: int = Field(4, ge=0, le=65_536, description="Hard samples kept to estimate importance; 0: none.")
    mask_absent: bool = Field(
        True,
        description="Leave classes that are not in the mini-batch out of the loss.",
        json_schema_extra=WARN,
    )


class LowPassOptions(Options):
    """LBP-WHT: low-pass back-propagation through frozen weights (arXiv 2309.15275)."""

    order: int = Field(
        3,
        ge=1,
        le=1024,
        description="Walsh-Hadamard bases of row + column order below this; more is closer and slower.",
    )


class BackpropOptions(Options):
    """How gradients come back through the frozen weights of adapted blocks."""

    lbp_wht: LowPassOptions | None = Field(
        None, description="On low-pass bases of the patch grid (LBP-WHT); null: whole."
    )


class OnlineLora(AdapterOptions):
    """Online-LoRA with a linear head, as published (arXiv 2411.05663)."""

    name: Literal["online_lora"] = Field("online_lora", description="The paper's learner.")
    first_block: Block = Field(0, description="First block with adapters, from 0.")
    last_blocks: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Instead of first_block: adapters in so many of the last blocks; those before them run "
        "once, without gradients.",
    )
    backprop: BackpropOptions = Field(
        BackpropOptions(), description="Shortcuts on the way back.", json_schema_extra=WARN
    )
    learning_rate: float = Field(5e-4, gt=0, le=10, description="Adam's step size.", json_schema_extra=WARN)
    optimizer: Literal["adam"] = Field("adam", description="The optimizer.")

    @model_validator(mode="after")
    def _one_beginning(self) -> OnlineLora:
        if self.first_block and self.last_blocks is not None:
            raise PydanticCustomError("both", "'first_block' and 'last_blocks' say the same: give one")
        return self


class RidgeOptions(Options):
    """A closed-form ridge head on frozen features (RanPAC, arXiv 2307.02251)."""

    blocks: list[Block] | None = Field(
        None,
        min_length=1,
        description="Blocks whose tokens are the features, from 0; null: every second of the last eight.",
    )
    views: Literal[1, 2] = Field(
        1, description="2: the mean over an image and its mirrored inner part; twice the cost."
    )
    shrinkage: float | None = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples; null: relative_lambda.",
        json_schema_extra=WARN,
    )
    relative_lambda: float = Field(
        1e-3,
        gt=0,
        le=1e6,
        description="Where shrinkage is null: ridge as a share of the mean of the Gram matrix's diagonal.",
        json_schema_extra=WARN,
    )
    refresh: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of new samples at which predictions made while learning use new weights.",
        json_schema_extra=WARN,
    )
    projection: int | None = Field(
        None, ge=1, le=65_536, description="Random ReLU features on top; null: the features as they are."
    )

    @field_validator("blocks")
    @classmethod
    def _each_once(cls, blocks: list[int] | None) -> list[int] | None:
        return _distinct(blocks)


class Ridge(RidgeOptions):
    """The ridge head alone: no gradients, exact forgetting."""

    name: Literal["ridge"] = Field("ridge", description="Closed form on frozen features.")


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


class CohortOptions(Options):
    """Cohorts with adapters of their own, each of which can be forgotten whole and exactly."""

    name: Literal["cohorts"] = Field("cohorts", description="An adapter for each cohort.")
    by: Literal["domain", "subject", "stretch"] = Field(
        "domain", description="What makes a cohort: a domain (a tenant), a subject, or a stretch of records."
    )
    stretch: int = Field(1000, ge=1, le=10**12, description="Where by is stretch: records of a cohort.")
    limit: int = Field(8, ge=1, le=1000, description="Cohorts with an adapter; later ones have none.")
    ridge: HybridRidgeOptions = Field(HybridRidgeOptions(), description="The shared closed-form part.")
    lora: CohortAdapterOptions = Field(CohortAdapterOptions(), description="The adapters.")


class NearestMean(Options):
    """The nearest class mean on frozen features (iCaRL's rule, arXiv 1611.07725): no gradients."""

    name: Literal["ncm"] = Field("ncm", description="Nearest class mean on frozen features.")
    blocks: list[Block] | None = Field(
        None, min_length=1, description="Blocks whose tokens are the features, from 0; null: the last five."
    )
    metric: Literal["cosine", "euclid"] = Field("cosine", description="How nearness is measured.")

    @field_validator("blocks")
    @classmethod
    def _each_once(cls, blocks: list[int] | None) -> list[int] | None:
        return _distinct(blocks)


class StreamingLda(RidgeOptions):
    """Streaming linear discriminant analysis on frozen features (arXiv 1909.01520): no gradients."""

    name: Literal["slda"] = Field("slda", description="Class means under one shared covariance.")
    shrinkage: None = Field(None, description="Not for this learner.")
    relative_lambda: float = Field(
        1e-2,
        gt=0,
        lt=1,
        description="Shrinkage of the covariance towards a multiple of the identity.",
        json_schema_extra=WARN,
    )


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
    buffer: int = Field(500, ge=1, le=10**6, description="Images held.")


class DarkReplayOptions(AdaptedBaselineOptions):
    """DER++: rehearsal of images and of the logits that they had (arXiv 2004.07211)."""

    name: Literal["der_pp"] = Field("der_pp", description="LoRA with rehearsal of logits.")
    buffer: int = Field(500, ge=1, le=10**6, description="Images held.")
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
    Discriminator(_variant),
    _by_name("hybrid"),
]


class ByClass(Options):
    """A part of your own, by its dotted path."""

    class_: str = Field(
        alias="class",
        pattern=_DOTTED,
        examples=["package.module:callable"],
        description="A callable that makes it.",
    )
    args: Args = Field({}, description="Keyword arguments for the callable.")


class ByPlugin(Options):
    """A part that an installed package registers as an entry point."""

    plugin: str = Field(min_length=1, max_length=200, description="The entry point's name.")
    args: Args = Field({}, description="Keyword arguments for the plugin.")


class DetectorOptions(Options):
    """What all detectors of losses share."""

    gather: int = Field(
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


class Relative(DetectorOptions):
    """A scale-free rule that needs no tuning per data set."""

    name: Literal["relative"] = Field("relative", description="Scale-free; the default.")
    threshold: float = Field(
        2.8,
        gt=0,
        le=100,
        description="Standard errors that the loss must rise by before a shift is reported.",
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
    | Annotated[Relative, Tag("relative")]
    | Annotated[River, Tag("river")]
    | Annotated[NoShift, Tag("none")]
    | Annotated[ByClass, Tag("class")]
    | Annotated[ByPlugin, Tag("plugin")],
    Discriminator(_variant),
    _by_name("relative"),
]


class EvaluateOptions(Options):
    """When to measure accuracy on the source's held-out samples."""

    every: int | None = Field(1000, ge=1, le=10**12, description="Samples between measurements; null: never.")
    at_parts: bool = Field(True, description="Also at the end of each known part of the stream.")
    max_per_part: int | None = Field(
        None, ge=1, le=10**9, description="Held-out samples used a part; null: all."
    )
    final: bool = Field(True, description="Also at the end of the stream.")


class CheckpointOptions(Options):
    """How often the run can be resumed from."""

    every: int = Field(2000, ge=1, le=10**12, description="Samples between checkpoints.")
    keep: int = Field(2, ge=1, le=1000, description="Newest checkpoints that are kept.")
    guarantee: Literal["best_effort", "exactly_once"] = Field(
        "best_effort",
        description="exactly_once: refuse at the start a source that cannot be replayed after a crash.",
    )


class TensorBoard(Options):
    """Metrics as TensorBoard files in the run directory."""

    name: Literal["tensorboard"] = Field("tensorboard", description="Needs the extra 'tensorboard'.")


class MLflow(Options):
    """Metrics to an MLflow server or folder."""

    name: Literal["mlflow"] = Field("mlflow", description="Needs the extra 'mlflow'.")
    uri: str | None = Field(None, min_length=1, description="Tracking URI; null: MLflow's own default.")
    experiment: str | None = Field(None, min_length=1, description="Experiment; null: MLflow's own default.")


SinkOptions: TypeAlias = Annotated[
    Annotated[TensorBoard, Tag("tensorboard")]
    | Annotated[MLflow, Tag("mlflow")]
    | Annotated[ByClass, Tag("class")]
    | Annotated[ByPlugin, Tag("plugin")],
    Discriminator(_variant),
    _by_name(),
]


class ReportOptions(Options):
    """How much report.html shows."""

    samples: int = Field(8, ge=0, le=256, description="Images shown at each shift.")
    title: str | None = Field(None, max_length=500, description="Heading; null: the run's name.")


class ForgetOptions(Options):
    """A request to forget that falls due at an offset of the stream."""

    model_config = ConfigDict(populate_by_name=True)

    at: int = Field(0, ge=0, lt=2**62, description="Carried out before the first batch at or past it.")
    class_: str | int | None = Field(None, alias="class", description="A class, all of it.")
    subject: str | int | None = Field(None, description="Everything of a subject.")
    all_users: bool = Field(False, description="Every sample whose privacy is user.")
    ids: list[str | int] | None = Field(None, min_length=1, description="Samples by their ids.")
    id_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Samples by what their ids look like: * stands for any letters, ? for one.",
    )
    domain: str | int | None = Field(None, description="Samples of a domain.")
    offsets: list[int] | None = Field(
        None, min_length=2, max_length=2, description="Samples from the first offset to before the second."
    )
    guarantee: Literal["exact", "bounded", "approximate"] | None = Field(
        None, description="The weakest guarantee that will do; null: the strongest that there is."
    )
    method: str = Field("auto", min_length=1, max_length=200, description="auto, or a method by name.")
    relearn: Literal["deny", "allow"] = Field(
        "deny", description="What happens when the stream brings it again: drop it, or learn it anew."
    )

    @model_validator(mode="after")
    def _something(self) -> ForgetOptions:
        narrow = [self.ids, self.id_pattern, self.domain, self.offsets]
        if self.class_ is not None and any(each is not None for each in (self.subject, *narrow)):
            raise PydanticCustomError("both", "'class' stands alone: a class is forgotten whole")
        if self.all_users:
            if any(each is not None for each in (self.class_, self.subject, *narrow)):
                raise PydanticCustomError("both", "'all_users' stands alone")
            return self
        if self.class_ is None and self.subject is None and not any(each is not None for each in narrow):
            raise PydanticCustomError(
                "none", "needs one of 'class', 'subject', 'ids', 'id_pattern', 'domain' and 'offsets'"
            )
        return self


class RanksOptions(Options):
    """Several processes that run it together (torchrun); a single one heeds none of this."""

    read: Literal["auto", "slices", "shards"] = Field(
        "auto",
        description="slices: each rank reads the whole stream and decodes its slice of every batch, so the "
        "result is that of one process; shards: each reads a part of its own; auto: shards where a class of "
        "yours has shard(rank, world), else slices.",
        json_schema_extra=WARN,
    )
    timeout: float = Field(
        1800.0, gt=0, le=10**6, description="Seconds that a rank waits for one that does not answer."
    )


class RunConfig(Options):
    """A run of streamcl: where the stream comes from, what learns from it, and what is kept."""

    name: str = Field(
        "run",
        pattern=_NAME,
        max_length=100,
        json_schema_extra=SAFE,
        examples=["my-run_1"],
        description="Letters, digits, '.', '_', '-'; by default the file's name without its ending.",
    )
    seed: Seed = Field(0, description="Decides every random choice of the run.")
    run_dir: str | None = Field(
        None, min_length=1, description="Where results go; null: runs/<name>.", json_schema_extra=SAFE
    )
    source: Annotated[SourceOptions, _by_name()] = Field(description="Where the stream comes from.")
    scenario: ScenarioOptions | None = Field(None, description="How the source is ordered; null: as it is.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Records a batch.")
    limit: int | None = Field(
        None,
        ge=1,
        le=10**15,
        description="Stop after that many samples; null: at the end.",
        json_schema_extra=SAFE,
    )
    backbone: Annotated[BackboneOptions, _by_name()] = Field(
        BackboneOptions(), description="The frozen vision transformer."
    )
    learner: LearnerOptions = Field(Hybrid(), description="What learns.")
    shift: ShiftOptions = Field(Relative(), description="How shifts of the stream are found.")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto",
        description="Arithmetic; auto: bf16 where it is timed to be faster when a run begins.",
        json_schema_extra=WARN,
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        json_schema_extra=WARN,
        examples=["auto", "cpu", "cuda", "cuda:0"],
        description="auto, cpu, cuda, or cuda:N.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: torch's choice.", json_schema_extra=WARN
    )
    evaluate: EvaluateOptions = Field(
        EvaluateOptions(), description="Held-out accuracy over time.", json_schema_extra=SAFE
    )
    checkpoint: CheckpointOptions | None = Field(
        CheckpointOptions(),
        description="Resumption; null: the run cannot be resumed.",
        json_schema_extra=SAFE,
    )
    forget: list[ForgetOptions] = Field(
        [],
        max_length=10_000,
        description="Requests to forget at offsets of the stream.",
        json_schema_extra=SAFE,
    )
    on_relapse: Literal["repeat", "report", "ignore"] = Field(
        "repeat",
        description="Where a test after a shift shows that something erased has come back: erase it again, "
        "only report it, or do not test.",
        json_schema_extra=SAFE,
    )
    statistics: Literal["per_class", "per_subject"] | None = Field(
        None,
        description="Sums kept on disk for each class or each subject, which can then be forgotten exactly "
        "without their samples; null: none. For ridge, slda and hybrid.",
    )
    ranks: RanksOptions = Field(
        RanksOptions(), description="Several processes on one run.", json_schema_extra=SAFE
    )
    max_skipped: int = Field(
        10,
        ge=1,
        le=10**6,
        json_schema_extra=SAFE,
        description="Steps in a row with numbers that are not finite before the run gives up.",
    )
    sinks: list[SinkOptions] = Field(
        [], max_length=32, description="Where metrics also go.", json_schema_extra=SAFE
    )
    report: ReportOptions = Field(
        ReportOptions(), description="What report.html shows.", json_schema_extra=SAFE
    )

    _origin: _Origin = PrivateAttr(default_factory=lambda: _Origin(Document()))

    @field_validator("learner")
    @classmethod
    def _within_depth(cls, learner: Any, info: ValidationInfo) -> Any:
        depth = info.data["backbone"].depth if "backbone" in info.data else None
        faults = [
            _conflict(
                path, block, f"block {block} does not exist; backbone.depth keeps blocks 0 to {depth - 1}"
            )
            for path, block in _named_blocks(learner)
            if depth is not None and block >= depth
        ]
        if faults:
            raise ValidationError.from_exception_data("RunConfig", faults)
        return learner

    @field_validator("statistics")
    @classmethod
    def _sums_to_keep(cls, statistics: str | None, info: ValidationInfo) -> str | None:
        learner = info.data.get("learner")
        if statistics is not None and not isinstance(learner, RidgeOptions | Hybrid | None):
            raise PydanticCustomError(
                "conflict",
                "{learner} has no sums of squares to keep; take ridge, slda or hybrid, or leave it out",
                {"learner": str(getattr(learner, "name", "it"))},
            )
        return statistics

    def refuse(self, path: str, message: str) -> ConfigError:
        """An error (to be raised) about the option at `path`, such as "learner.rank", with its place.

        For faults that only a later stage can see: a rank beyond the backbone's width, an unknown source.
        """
        keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
        return refusal([Problem(self._origin.document.place(keys), f"{path}: {message}")])


class _Origin:
    """Where a configuration was read; two configurations that differ only in this are equal."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, document: Document) -> None:
        self.document = document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin)


def remember_origin(config: RunConfig, document: Document) -> None:
    """Let `config.refuse` name places in `document`."""
    config._origin = _Origin(document)


def _named_blocks(learner: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The backbone blocks that a learner's options name, each with its location as pydantic tells it."""
    for inner in ((), ("ridge",), ("lora",)):
        options = getattr(learner, inner[0], None) if inner else learner
        for index, block in enumerate(getattr(options, "blocks", None) or ()):
            yield (learner.name, *inner, "blocks", index), block
        if (first := getattr(options, "first_block", None)) is not None:
            yield (learner.name, *inner, "first_block"), first


def _conflict(path: tuple[str | int, ...], value: Any, message: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("conflict", "{why}", {"why": message}), loc=path, input=value
    )


def _distinct(items: list[Any] | None) -> list[Any] | None:
    repeated = [item for i, item in enumerate(items or ()) if item in (items or ())[:i]]
    if repeated:
        raise PydanticCustomError("repeated", "{item} is listed twice", {"item": repeated[0]})
    return items
