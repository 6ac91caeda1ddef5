"""Makes the learner, the shift detector and the sinks of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamcl.config.options.learner import learner_factory, learner_name
from streamcl.config.options.run import RunConfig
from streamcl.config.options.variants import ClassOptions, PluginOptions
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.errors import ConfigError, MissingExtra
from streamcl.events import StreamInfo
from streamcl.learners.factory import LearnerContext
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.memory.waiting_samples import WaitingSamples
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streamcl.protocols import Learner, ShiftDetector
from streamcl.registry import DETECTORS, call_with, import_callable
from streamcl.shift.detector import build_detector
from streamcl.sinks.fanout import Fanout, build_sinks


def build_learner(
    config: RunConfig,
    backbone: Backbone,
    compute: Compute,
    group: ProcessGroup = SINGLE_PROCESS,
    folder: Path | None = None,
) -> Learner:
    """Return the configuration's learner, before it has learned anything, for the processes of `group`.

    Raise ConfigError where the options do not fit the backbone or the learner.

    Args:
        config: of the run.
        backbone: its frozen transformer.
        compute: device and precision.
        group: the processes that learn each batch together.
        folder: the run's directory, for files without a name; None: the learner keeps all in memory.
    """
    options, factory = config.learner, learner_factory(config.learner)
    keeps = config.answer.log and not compute.fitted
    context = LearnerContext(backbone, compute, config.seed, group, keeps, config.refuse, folder)
    if not isinstance(options, ClassOptions | PluginOptions):
        built_in: Learner = factory.build(options, context)
        return built_in
    with _placed_at(config, "learner.args"):
        own: Learner = call_with(factory, f"learner {learner_name(options)!r}", options.args, context)
    return own


def build_shift(config: RunConfig) -> ShiftDetector:
    """Return the shift detector that the configuration names."""
    options = config.shift
    if isinstance(options, ClassOptions | PluginOptions):
        if isinstance(options, ClassOptions):
            name, make = options.class_, import_callable(options.class_)
        else:
            name, make = options.plugin, DETECTORS.find(options.plugin)
        with _placed_at(config, "shift.args"):
            own: ShiftDetector = call_with(make, f"detector {name!r}", options.args)
        return own
    arguments = options.model_dump(exclude={"name", "min_samples"})
    if options.name == "river":
        arguments["name"] = arguments.pop("detector")
    return build_detector(options.name, **arguments)


def detector_batch(config: RunConfig) -> int:
    """Return how many samples the mean loss is of, at least, that the shift detector is given."""
    return int(getattr(config.shift, "min_samples", 1))


def build_waiting(config: RunConfig, group: ProcessGroup = SINGLE_PROCESS) -> WaitingSamples | None:
    """Return the store of samples that wait for their labels; None where labels come with their records."""
    options = config.labels
    if options is None:
        return None
    if group.world_size > 1:
        raise config.refuse(
            "labels", "labels that come later need a run of one process; start it without torchrun"
        )
    return WaitingSamples(options.max_waiting, options.max_bytes, options.wait)


def build_held_out(
    config: RunConfig, info: StreamInfo, image_size: int, group: ProcessGroup = SINGLE_PROCESS
) -> HoldoutStore:
    """Return the store of samples that the run holds out; it stays empty where the source has its own."""
    return HoldoutStore(
        0.0 if info.holdout else config.evaluate.hold_out,
        max_samples=config.evaluate.max_held_out,
        seed=config.seed,
        side=image_size,
        group=group if group.world_size > 1 else None,
    )


@contextmanager
def _placed_at(config: RunConfig, path: str) -> Iterator[None]:
    """Give an error about the arguments of a user's part their location in the configuration."""
    try:
        yield
    except MissingExtra:
        raise
    except ConfigError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise config.refuse(path, f"{error}{hint}") from error


def build_fanout(config: RunConfig, folder: Path) -> Fanout:
    """Return the logs in the run's folder and the further sinks of the configuration, as one."""
    arguments: dict[str, dict[str, Any]] = {}
    own: dict[str, Callable[..., Any]] = {}
    for sink in config.sinks:
        if isinstance(sink, ClassOptions):
            arguments[sink.class_] = dict(sink.args)
            own[sink.class_] = import_callable(sink.class_)
        elif isinstance(sink, PluginOptions):
            arguments[sink.plugin] = dict(sink.args)
        else:
            arguments[sink.name] = sink.model_dump(exclude={"name"}, exclude_none=True)
    return build_sinks(folder, arguments, own)
