"""The union of all learners' options, and checks of them against the backbone's depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Discriminator, Tag
from pydantic_core import InitErrorDetails, PydanticCustomError

from streamcl.config.options.base import Options
from streamcl.config.options.variants import ClassOptions, PluginOptions, by_name, variant
from streamcl.registry import LEARNERS, import_callable

DEFAULT = "ridge_lora"


def default_learner() -> Options:
    """Return the options of the default learner."""
    made: Options = _options(DEFAULT)()
    return made


def learner_factory(options: Any) -> Any:
    """Return the callable that makes a learner: built-in, of an installed package, or the user's own."""
    if isinstance(options, ClassOptions):
        return import_callable(options.class_)
    return LEARNERS.find(learner_name(options))


def learner_name(options: Any) -> str:
    """Return what a configuration calls its learner."""
    match options:
        case ClassOptions():
            return options.class_
        case PluginOptions():
            return options.plugin
    return str(options.name)


def _options(name: str) -> Any:
    """Return the class of a built-in learner's options, which lies beside the learner."""
    return LEARNERS.find(name).options  # type: ignore[attr-defined]


if TYPE_CHECKING:
    LearnerOptions: TypeAlias = Options
else:
    _BUILT_IN = [Annotated[_options(name), Tag(name)] for name in LEARNERS.built_in]
    _OWN = [Annotated[ClassOptions, Tag("class")], Annotated[PluginOptions, Tag("plugin")]]
    LearnerOptions = Annotated[Union[(*_BUILT_IN, *_OWN)], Discriminator(variant), by_name(DEFAULT)]


def blocks_beyond_depth(learner: Any, depth: int) -> list[InitErrorDetails]:
    """Return a fault for each block that a learner's options name and a backbone of that depth lacks."""
    kept = f"backbone.depth keeps blocks 0 to {depth - 1}"
    return [
        conflict(f"block {block} does not exist; {kept}", path, block)
        for path, block in _named_blocks(learner)
        if block >= depth
    ]


def conflict(why: str, path: tuple[str | int, ...], value: Any) -> InitErrorDetails:
    """Return pydantic's form of a fault at `path`, where two options do not go together."""
    return InitErrorDetails(
        type=PydanticCustomError("conflict", "{why}", {"why": why}), loc=path, input=value
    )


def _named_blocks(learner: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield (location in pydantic's form, index) of each transformer block that a learner's options name."""
    name = str(variant(learner))
    for inner in ((), ("ridge",), ("lora",)):
        options = getattr(learner, inner[0], None) if inner else learner
        for index, block in enumerate(getattr(options, "blocks", None) or ()):
            yield (name, *inner, "blocks", index), block
        if (first := getattr(options, "first_block", None)) is not None:
            yield (name, *inner, "first_block"), first
