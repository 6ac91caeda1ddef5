"""Finds the parts that a configuration names: built-in ones, those of installed packages, import paths."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from streamcl.errors import ConfigError, SourceError, StreamclError, cause_of, nearest

FORM = 'write "package.module:callable"'


@dataclass(frozen=True, slots=True)
class Registry:
    """Callables of one kind by name.

    Attributes:
        kind: the noun that messages use, such as "detector".
        group: the entry-point group in which installed packages register theirs.
        built_in: import paths "package.module:callable" by name; each is imported when `find` needs it.
    """

    kind: str
    group: str
    built_in: Mapping[str, str]

    def names(self) -> tuple[str, ...]:
        """Return the built-in names, then those of installed packages."""
        plugins = sorted(point.name for point in entry_points(group=self.group))
        return tuple(dict.fromkeys((*self.built_in, *plugins)))

    def find(self, name: str) -> Callable[..., Any]:
        """Return the callable of that name, a built-in one before an installed one.

        Raise ConfigError where no such name exists (the nearest is in the hint), or where the plugin cannot
        be imported or called.
        """
        if name in self.built_in:
            return import_callable(self.built_in[name])
        for point in entry_points(group=self.group):
            if point.name == name:
                return self._load(point)
        raise ConfigError(f"there is no {self.kind} {name!r}", hint=nearest(name, self.names()))

    def make(
        self, name: str, args: Mapping[str, Any], *context: Any, offered: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the callable of that name; see `call_with`."""
        return call_with(self.find(name), f"{self.kind} {name!r}", args, *context, offered=offered)

    def _load(self, point: EntryPoint) -> Callable[..., Any]:
        label = f"the plugin {point.value} of the {self.kind} {point.name!r}"
        try:
            found = point.load()
        except StreamclError:
            raise
        except Exception as error:  # an import may raise anything; the message says whose fault it is
            raise ConfigError(f"{label} does not load: {error}") from error
        if not callable(found):
            raise ConfigError(f"{label} is not callable")
        return found  # type: ignore[no-any-return]


SOURCES = Registry(
    "source",
    "streamcl.sources",
    {
        "demo_digits": "streams.datasets.demo:demo_digits",
        "demo_icons": "streams.datasets.demo:demo_icons",
        "digits": "streams.datasets.digits:digits",
        "icons": "streams.datasets.icons:icons",
        "npz": "streams.datasets.npz:npz",
        "image_folder": "streams.datasets.image_folder:image_folder",
        "core50": "streams.datasets.core50:core50",
        "cifar100": "streams.datasets.cifar100:cifar100",
        "imagenet_r": "streams.datasets.image_folder:imagenet_r",
        "imagenet_sketch": "streams.datasets.image_folder:imagenet_sketch",
        "cub200": "streams.datasets.cub200:cub200",
        "folder": "streams.live.files.folder:FolderReader",
        "s3": "streams.live.files.objects:ObjectReader",
        "video": "streams.live.video.video:VideoReader",
        "camera": "streams.live.video.camera:CameraReader",
        "manifest": "streams.datasets.manifest:manifest",
        "huggingface": "streams.datasets.huggingface:huggingface",
        "torchvision": "streams.datasets.torchvision_sets:torchvision",
        "coco": "streams.datasets.coco:coco",
        "label_studio": "streams.datasets.label_studio:label_studio",
        "redis": "streams.live.brokers.redis_streams:RedisReader",
        "kafka": "streams.live.brokers.kafka:KafkaReader",
        "mqtt": "streams.live.brokers.mqtt:MqttProducer",
        "push": "streams.live.spool.push:PushProducer",
        "webdataset": "streams.datasets.webdataset:webdataset",
    },
)
DETECTORS = Registry(
    "detector",
    "streamcl.detectors",
    {
        "relative_rise": "streamcl.shift.relative_rise:RelativeRiseDetector",
        "plateau": "streamcl.shift.plateau:PlateauDetector",
        "river": "streamcl.shift.river:RiverDetector",
        "none": "streamcl.shift.detector:SilentDetector",
    },
)
LEARNERS = Registry(
    "learner",
    "streamcl.learners",
    {
        "ridge_lora": "streamcl.learners.ridge_lora:RIDGE_LORA",
        "ridge": "streamcl.learners.ridge:RIDGE",
        "online_lora": "streamcl.learners.online_lora:ONLINE_LORA",
        "mixed_privacy": "streamcl.learners.mixed_privacy:MIXED_PRIVACY",
        "cohort_adapters": "streamcl.learners.cohort_adapters:COHORT_ADAPTERS",
        "ncm": "streamcl.learners.ncm:NCM",
        "slda": "streamcl.learners.slda:SLDA",
        "reconstruct": "streamcl.learners.reconstruction:RECONSTRUCT",
        "keys": "streamcl.learners.keys:KEYS",
        "frozen_linear": "streamcl.learners.baselines.finetune:FROZEN_LINEAR",
        "naive_lora": "streamcl.learners.baselines.finetune:NAIVE_LORA",
        "er": "streamcl.learners.baselines.replay:ER",
        "der_pp": "streamcl.learners.baselines.replay:DER_PP",
        "ewc_pp": "streamcl.learners.baselines.ewc:EWC_PP",
    },
)
SINKS = Registry(
    "sink",
    "streamcl.sinks",
    {
        "tensorboard": "streamcl.sinks.tensorboard:tensorboard_sink",
        "mlflow": "streamcl.sinks.mlflow:mlflow_sink",
    },
)
FORGETTING = Registry(
    "forgetting method",
    "streamcl.forgetting",
    {
        "no_op": "streamcl.forgetting.methods.no_op:NoOp",
        "all_users": "streamcl.forgetting.methods.mixed_privacy:AllUsers",
        "drop_cohort": "streamcl.forgetting.methods.drop_cohort:DropCohort",
        "closed_form": "streamcl.forgetting.methods.closed_form:ClosedFormRemoval",
        "drop_branch": "streamcl.forgetting.methods.drop_branch:DropBranch",
        "mixed_privacy": "streamcl.forgetting.methods.mixed_privacy:MixedPrivacy",
        "drop_cohort_approximate": "streamcl.forgetting.methods.drop_cohort:DropCohortApproximate",
        "head_only": "streamcl.forgetting.methods.head_only:HeadOnly",
        "gs_lora": "streamcl.forgetting.methods.gs_lora:GSLoRA",
        "fast_ntk": "streamcl.forgetting.methods.fast_ntk:FastNTK",
        "replay_from_checkpoint": "streamcl.forgetting.methods.replay_from_checkpoint:ReplayFromCheckpoint",
    },
)


def call_with(
    function: Callable[..., Any],
    label: str,
    args: Mapping[str, Any],
    *context: Any,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Call `function(*context, **args)` with the arguments of a configuration.

    Args:
        label: the function's name in messages, such as "detector 'plateau'".
        args: keyword arguments from the configuration.
        context: positional arguments.
        offered: keyword arguments that are passed where the function has a parameter for them and `args`
            does not give it.

    Raises:
        ConfigError: an argument is unknown (the nearest is in the hint) or missing, or the function raises.
            Errors of streamcl and of the machine (OSError, MemoryError) pass unchanged.
    """
    given = _checked(function, label, args, len(context), offered or {})
    try:
        return function(*context, **given)
    except (StreamclError, OSError, MemoryError):
        raise
    except Exception as error:  # a user's part may raise anything
        why = str(error) if isinstance(error, TypeError | ValueError) else cause_of(error)
        hint = f"its arguments were {dict(args)}"
        raise ConfigError(f"the {label} cannot be made: {why}", hint=hint) from error


def bind_arguments(path: str, args: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function of no arguments that calls the callable at `path` with `args`.

    Raise ConfigError where the callable does not take them; the function raises SourceError where the
    callable returns None.
    """
    function = import_callable(path)
    _checked(function, f"callable {path}", args, 0, {})

    def make() -> Any:
        made = function(**args)
        if made is None:
            raise SourceError(f"{path} returned None", hint="return an iterable of records, or yield them")
        return made

    return make


def check_arguments(
    function: Callable[..., Any], label: str, args: Mapping[str, Any], *, offered: Mapping[str, Any]
) -> None:
    """Raise ConfigError where `call_with` would refuse the arguments by their names; call nothing."""
    _checked(function, label, args, 0, offered)


def _checked(
    function: Callable[..., Any], label: str, args: Mapping[str, Any], before: int, offered: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments to call with, after `before` positional ones."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-ins have no signature
        return dict(args)
    in_order = [
        each for each in parameters if each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD}
    ]
    named = [each for each in in_order[before:] if each.kind is each.POSITIONAL_OR_KEYWORD]
    named += [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    names = [each.name for each in named]
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if unknown := [] if open_ended else [key for key in args if key not in names]:
        hint = nearest(unknown[0], names, "it takes")
        raise ConfigError(f"the {label} has no argument {unknown[0]!r}", hint=hint)
    given = {key: value for key, value in offered.items() if key in names} | dict(args)
    if missing := [each.name for each in named if each.default is each.empty and each.name not in given]:
        raise ConfigError(f"the {label} needs the argument {missing[0]!r}")
    return given


def import_callable(path: str) -> Callable[..., Any]:
    """Return the callable at an import path "package.module:callable".

    The working directory comes first on the path, so that a file beside the YAML is found. Raise ConfigError
    where the module or the name does not exist or cannot be called, SourceError where the import raises.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigError(f"{path!r} does not name a callable", hint=FORM)
    found: Any = _module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [each for each in dir(found) if not each.startswith("_")], "it has")
            raise ConfigError(f"{path}: {found.__name__} has no {part!r}", hint=hint)
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{path} is a {type(found).__name__}, which cannot be called", hint=FORM)
    return found  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    if name not in sys.modules:
        importlib.invalidate_caches()  # the file may be a second old
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = "give the file's name without .py; files are looked for in the working directory"
            raise ConfigError(f"there is no module {error.name!r}", hint=hint) from error
        raise SourceError(f"importing {name} failed: {error}", hint="install what it imports") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise SourceError(f"importing {name} failed: {cause_of(error)}") from error
