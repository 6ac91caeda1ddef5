"""The composition root: makes the parts that a configuration names and hands each what it needs."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch

from streamcl.backbone import Backbone, backbone_names, build_backbone
from streamcl.build_baselines import build_baseline
from streamcl.compute import Compute, resolve_compute
from streamcl.config import RunConfig
from streamcl.config_models.closed_form import NearestMean, RidgeOptions, StreamingLda
from streamcl.config_models.hybrid import CohortOptions, Hybrid, Mixed
from streamcl.config_models.online_lora import OnlineLora
from streamcl.config_models.variants import ByClass, ByPlugin
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.closed_form import ClosedForm
from streamcl.forgetting.dropped_adapter import DroppedAdapter
from streamcl.forgetting.dropped_cohort import CrowdedCohort, DroppedCohort
from streamcl.forgetting.fast_ntk import FastNTK
from streamcl.forgetting.gs_lora import GSLoRA
from streamcl.forgetting.head_rows import HeadRows
from streamcl.forgetting.mixed_privacy import AllUsers, MixedPrivacy
from streamcl.forgetting.nothing import Nothing
from streamcl.forgetting.orders import order
from streamcl.forgetting.protocol import Method
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.heads.user_weights import UserWeights
from streamcl.learners.adapted import AdaptedBranch
from streamcl.learners.cohorts import CohortLearner, Division
from streamcl.learners.fused import FrozenReader, fused_width, spread_blocks
from streamcl.learners.hybrid import HybridLearner
from streamcl.learners.mixed import MixedLearner
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.tangents import TangentReader
from streamcl.low_pass import LowPass
from streamcl.protocols import Learner, ShiftDetector, Sink, Source, State
from streamcl.randomness import capture_generators
from streamcl.ranks import ALONE, Ranks, local_rank
from streamcl.shift import build_detector, detector_names
from streamcl.sinks import known_sinks
from streamcl.weights import convert_onnx
from streams import catalogue, fetch
from streams.dotted import caller, resolve
from streams.guarded import Checked, Limited, ReadAhead
from streams.iterators import IterableSource
from streams.ordered import ordered
from streams.parted import Parted, can_be_parted, part_size
from streams.records import RecordPolicy
from streams.sliced import Sliced
from streams.wheels import cache_dir

Tell = Callable[[str], None]
RIDGE_SHARPNESS = 10.0
ADAPTED_BLOCKS = 3
"""Last of the blocks that the exact branch reads, which the adapted branch of a hybrid reads too."""


class OpenSource(Source, Protocol):
    """A source that is read ahead (see streams.guarded.ReadAhead)."""

    def noted(self) -> State:
        """The process-wide random generators after the last event handed out."""
        ...

    def interrupt(self) -> None:
        """Wait for no further event. Safe in a signal handler."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


def build_compute(config: RunConfig, ranks: Ranks = ALONE) -> Compute:
    """The device and precision, and torch's number of threads, which is the process's.

    Each of several ranks on a machine takes a GPU of its own, where there are any.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if ranks.world == 1:
        return resolve_compute(config.device, config.precision)
    if config.device.startswith("cuda:"):
        raise config.refuse("device", f"{config.device} is one device for {ranks.world} ranks; say cuda")
    compute = resolve_compute(config.device, config.precision)
    if compute.device.type != "cuda":
        return compute
    own = resolve_compute(f"cuda:{local_rank()}", config.precision)
    torch.cuda.set_device(own.device)
    return own


def build_vit(config: RunConfig, compute: Compute, tell: Tell) -> Backbone:
    """The frozen backbone; what its weights lack or have too much of is told."""
    options = config.backbone
    weights = options.weights
    if weights.startswith("fetch:"):
        weights = str(fetched_weights(weights.removeprefix("fetch:"), tell))
    return build_backbone(
        options.name,
        weights=weights,
        image_size=options.image_size,
        depth=options.depth,
        device=compute.device,
        seed=config.seed,
        args=options.args,
        report=tell,
    )


def fetched_weights(name: str, tell: Tell) -> Any:
    """The path of fetched weights as safetensors; fetched and converted once, then taken from the cache."""
    target = cache_dir() / "weights" / f"{name}.safetensors"
    if not target.exists():
        tell(f"fetching the weights {name}, once")
        raw = fetch.fetch(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        convert_onnx(raw, target)
    return target


def build_learner(config: RunConfig, backbone: Backbone, compute: Compute, ranks: Ranks = ALONE) -> Learner:
    """The learner that the configuration names, knowing nothing yet; `ranks` learn each batch together."""
    options = config.learner
    if isinstance(options, OnlineLora):
        return OnlineLoRALearner(
            backbone,
            compute,
            rank=options.rank,
            first_block=_first_block(config, options, backbone),
            low_pass=_low_pass(config, options, backbone),
            learning_rate=options.learning_rate,
            regularisation=options.regularisation,
            buffer=options.buffer,
            mask_absent=options.mask_absent,
            seed=config.seed,
            ranks=ranks,
        )
    if isinstance(options, RidgeOptions | NearestMean):
        return _closed_form(config, options, backbone, compute, ranks)
    if isinstance(options, Hybrid):
        return _hybrid(config, options, backbone, compute, ranks)
    if isinstance(options, Mixed):
        return _mixed(config, options, backbone, compute)
    if isinstance(options, CohortOptions):
        return _cohorts(config, options, backbone, compute)
    return build_baseline(options, backbone, compute, config.seed, ranks)


def _first_block(config: RunConfig, options: OnlineLora, backbone: Backbone) -> int:
    if options.last_blocks is None:
        return options.first_block
    if options.last_blocks > backbone.depth:
        raise config.refuse("learner.last_blocks", f"{options.last_blocks} of {backbone.depth} blocks")
    return backbone.depth - options.last_blocks


def _low_pass(config: RunConfig, options: OnlineLora, backbone: Backbone) -> LowPass | None:
    if (wanted := options.backprop.lbp_wht) is None:
        return None
    if backbone.grid is None:
        raise config.refuse("learner.backprop.lbp_wht", f"{backbone.name} has no one grid of patches")
    return LowPass(*backbone.grid, order=wanted.order)


def _closed_form(
    config: RunConfig,
    options: RidgeOptions | NearestMean,
    backbone: Backbone,
    compute: Compute,
    ranks: Ranks,
) -> RidgeLearner:
    blocks = _blocks(config, options.blocks, backbone)
    width = fused_width(backbone, blocks)
    if isinstance(options, NearestMean):
        nearest: Any = NCMHead(width, metric=options.metric, device=compute.device)
        return RidgeLearner(backbone, compute, nearest, blocks=blocks, ranks=ranks)
    discriminant = isinstance(options, StreamingLda)
    head = (SLDAHead if discriminant else RidgeHead)(
        width,
        projection=options.projection,
        seed=config.seed,
        relative_lambda=options.relative_lambda,
        shrinkage=options.shrinkage,
        refresh=options.refresh,
        device=compute.device,
    )
    sharpness = 1.0 if discriminant else RIDGE_SHARPNESS  # discriminants are log-likelihood ratios already
    return RidgeLearner(
        backbone, compute, head, blocks=blocks, views=options.views, sharpness=sharpness, ranks=ranks
    )


def _blocks(config: RunConfig, named: list[int] | None, backbone: Backbone) -> list[int]:
    blocks = named or spread_blocks(backbone.depth)
    if max(blocks) >= backbone.depth:
        raise config.refuse(
            "learner.blocks", f"block {max(blocks)} does not exist; there are {backbone.depth}"
        )
    return blocks


def _hybrid(
    config: RunConfig, options: Hybrid | Mixed, backbone: Backbone, compute: Compute, ranks: Ranks
) -> HybridLearner:
    ridge, lora = options.ridge, options.lora
    exact = _closed_form(config, ridge, backbone, compute, ranks)
    if lora.adapt == 0:
        return HybridLearner(exact, None)
    return HybridLearner(exact, _branch(config, options, backbone, compute, config.seed, ranks=ranks))


def _branch(
    config: RunConfig,
    options: Hybrid | Mixed | CohortOptions,
    backbone: Backbone,
    compute: Compute,
    seed: int,
    *,
    ranks: Ranks = ALONE,
) -> AdaptedBranch:
    ridge, lora = options.ridge, options.lora
    first = backbone.depth // 3 if lora.first_block is None else lora.first_block
    blocks = [block for block in _blocks(config, ridge.blocks, backbone) if block >= first][-ADAPTED_BLOCKS:]
    if not blocks:
        raise config.refuse("learner.lora.first_block", f"no block of the ridge's comes at or after {first}")
    head = RidgeHead(
        fused_width(backbone, blocks),
        relative_lambda=ridge.relative_lambda,
        shrinkage=ridge.shrinkage,
        refresh=ridge.refresh,
        device=compute.device,
    )
    return AdaptedBranch(
        backbone,
        compute,
        head,
        blocks=blocks,
        first_block=first,
        rank=lora.rank,
        learning_rate=lora.learning_rate,
        steps=lora.steps,
        adapt=lora.adapt,
        seed=seed,
        ranks=ranks,
    )


def _mixed(config: RunConfig, options: Mixed, backbone: Backbone, compute: Compute) -> MixedLearner:
    core, users = _hybrid(config, options, backbone, compute, ALONE), options.users
    tangents = None
    if core.adapted is not None and users.tangents:
        tangents = TangentReader(core.adapted, width=users.tangents, blocks=users.blocks, seed=config.seed)
    frozen = fused_width(backbone, [max(_blocks(config, options.ridge.blocks, backbone))])
    weights = UserWeights(
        1 + frozen + (0 if tangents is None else tangents.width),
        shrinkage=users.shrinkage,
        noise=users.noise,
        refresh=options.ridge.refresh,
        cohorts=users.cohorts,
        device=compute.device,
    )
    return MixedLearner(core, weights, tangents, frozen=frozen)


def _cohorts(
    config: RunConfig, options: CohortOptions, backbone: Backbone, compute: Compute
) -> CohortLearner:
    ridge, lora = options.ridge, options.lora
    blocks = _blocks(config, ridge.blocks, backbone)
    if ridge.shrinkage is None or ridge.projection is not None:
        raise config.refuse("learner.ridge", "cohorts need a shrinkage, and no projection")

    def branch(cohort: str) -> AdaptedBranch:
        digest = hashlib.sha256(f"{config.seed} {cohort}".encode()).digest()
        return _branch(config, options, backbone, compute, int.from_bytes(digest[:7], "big"))

    branch("")  # what is wrong with the options shows now
    return CohortLearner(
        FrozenReader(backbone, compute, blocks, views=ridge.views),
        Division(options.by, options.stretch, options.limit),
        branch,
        width=fused_width(backbone, blocks),
        cut=backbone.depth // 3 if lora.first_block is None else lora.first_block,
        shrinkage=ridge.shrinkage,
        refresh=ridge.refresh,
        sharpness=RIDGE_SHARPNESS,
    )


def build_shift(config: RunConfig) -> ShiftDetector:
    """The shift detector that the configuration names."""
    options = config.shift
    if isinstance(options, ByClass):
        try:
            made: ShiftDetector = resolve(options.class_)(**options.args)
        except TypeError as error:
            raise config.refuse("shift.args", str(error)) from error
        return made
    if isinstance(options, ByPlugin):
        return build_detector(options.plugin, **options.args)
    arguments = options.model_dump(exclude={"name", "gather"})
    if options.name == "river":
        return build_detector("river", name=arguments["detector"], args=arguments["args"])
    return build_detector(options.name, **arguments)


def build_methods() -> list[Method]:
    """The ways to forget, of equal guarantees the one to take first."""
    return [
        Nothing(),
        AllUsers(),
        DroppedCohort(),
        ClosedForm(),
        DroppedAdapter(),
        MixedPrivacy(),
        CrowdedCohort(),
        HeadRows(),
        GSLoRA(),
        FastNTK(),
    ]


def build_schedule(config: RunConfig) -> list[ForgetRequest]:
    """The requests that the configuration schedules, each with an id that says nothing."""
    return [_order(config, number) for number in range(len(config.forget))]


def _order(config: RunConfig, number: int) -> ForgetRequest:
    options = config.forget[number]
    label, subject, domain = (
        None if name is None else str(name) for name in (options.class_, options.subject, options.domain)
    )
    try:
        return order(
            id=f"scheduled-{options.at}-{number}",
            offset=options.at,
            ids=[str(each) for each in options.ids or ()],
            id_pattern=options.id_pattern,
            offsets=options.offsets,
            guarantee=options.guarantee,
            method=options.method,
            relearn=options.relearn,
            all_users=options.all_users,
            label=label,
            subject=subject,
            domain=domain,
        )
    except ForgettingError as error:
        raise config.refuse(f"forget.{number}", str(error)) from error


def own_sinks(config: RunConfig) -> dict[str, Callable[..., Sink]]:
    """The user's own makers of sinks, (run folder, **args) -> Sink, by their dotted paths."""
    return {sink.class_: resolve(sink.class_) for sink in config.sinks if isinstance(sink, ByClass)}


def build_source(
    config: RunConfig, ranks: Ranks = ALONE, on_stop: Callable[[], None] = lambda: None
) -> OpenSource:
    """The stream: ordered, limited, and read ahead under a watchdog.

    Where several `ranks` read it, `on_stop` is called on each of them when one has been asked to stop.
    """
    limit = sys.maxsize if config.limit is None else config.limit  # a limit may come and go between processes
    plain: Any = _plain_source(config)
    if ranks.world == 1:
        return _read_ahead(config, Limited(Checked(plain), limit))
    if _in_parts(config, plain):
        part = plain.shard(ranks.rank, ranks.world, part_size(config.batch_size, ranks))
        shared: Source = Parted(_read_ahead(config, Checked(part)), plain, ranks, on_stop)
    else:
        if hasattr(plain, "read_slice"):  # else each rank decodes everything
            plain.read_slice(ranks.rank, ranks.world)
        shared = Sliced(_read_ahead(config, Checked(plain)), ranks, on_stop)
    return cast(OpenSource, Limited(shared, limit))


def _read_ahead(config: RunConfig, source: Source) -> ReadAhead:
    # A source of the user's own may draw from the process-wide generators; those here have their own.
    note = capture_generators if config.source.class_ else dict
    return ReadAhead(source, config.source.prefetch, config.source.policy.stall_timeout, note=note)


def _in_parts(config: RunConfig, plain: Any) -> bool:
    """Whether each rank reads a part of its own: where that is said, or a user's own source has parts."""
    if config.ranks.read == "auto":
        return config.source.class_ is not None and can_be_parted(plain)
    if config.ranks.read == "shards" and not can_be_parted(plain):
        raise config.refuse("ranks.read", "this source has no shard(rank, world) by which parts are read")
    return config.ranks.read == "shards"


def _plain_source(config: RunConfig) -> Source:
    options, policy = config.source, config.source.policy
    if options.name is not None:
        return catalogue.build_source(
            options.name,
            options.args,
            _scenario(config),
            batch_size=config.batch_size,
            seed=config.seed,
            on_bad_record=policy.on_bad_record,
            policy=_record_policy(config),
        )
    scenario = _scenario(config)
    if scenario is None:
        return _own_source(config)
    return ordered(
        caller(str(options.class_), options.args),
        scenario,
        name=str(options.class_).rpartition(":")[2],
        batch_size=config.batch_size,
        seed=config.seed,
        policy=_record_policy(config),
        columns=options.columns,
    )


def _own_source(config: RunConfig) -> IterableSource:
    """The user's own stream."""
    options, policy = config.source, config.source.policy
    return IterableSource.of(
        str(options.class_),
        options.args,
        batch_size=config.batch_size,
        policy=_record_policy(config),
        columns=options.columns,
        deterministic=options.deterministic,
        retries=policy.retries,
        backoff=policy.retry_delay,
    )


def _scenario(config: RunConfig) -> catalogue.Scenario | None:
    if config.scenario is None:
        return None
    arguments = config.scenario.model_dump(exclude={"name"}, exclude_none=True)
    return config.scenario.name, arguments


def _record_policy(config: RunConfig) -> RecordPolicy:
    policy = config.source.policy
    names = ("on_bad_record", "missing_label", "negative_label", "max_classes")
    limits = ("max_pixels", "max_side", "max_file_bytes")
    return RecordPolicy(**{name: getattr(policy, name) for name in (*names, *limits)})


def known_names(kind: str) -> Iterable[tuple[str, str]]:
    """Names that a configuration can use for something of that kind, each with a note."""
    match kind:
        case "sources":
            return [(name, "") for name in catalogue.source_names()]
        case "detectors":
            return [(name, "") for name in detector_names()]
        case "sinks":
            return [(name, "") for name in known_sinks()]
        case "learners":
            return [
                ("hybrid", "the default"),
                ("online_lora", "the paper's"),
                ("ridge", "closed form, no gradients"),
                ("mixed", "mixed privacy: core samples train all, users a linear part"),
                ("cohorts", "an adapter for each tenant, subject or stretch, dropped whole"),
                ("ncm", "closed form: nearest class mean"),
                ("slda", "closed form: streaming discriminant analysis"),
                ("frozen_linear", "baseline: linear head by SGD"),
                ("naive_lora", "baseline: LoRA without a remedy"),
                ("er", "baseline: rehearsal of raw images"),
                ("der_pp", "baseline: rehearsal of images and logits"),
                ("ewc_pp", "baseline: elastic weights"),
            ]
        case "data":
            return [(entry.name, f"{entry.kind}: {entry.note}") for entry in fetch.catalogue()]
        case "backbones":
            return [(name, "") for name in backbone_names()]
    raise ConfigError(f"there is no list of {kind!r}")
