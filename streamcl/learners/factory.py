"""How a learner is made: its options, the function that makes it of them, and what it is made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from streamcl.config.options.base import Options
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.errors import ConfigError
from streamcl.protocols import Learner

if TYPE_CHECKING:
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

_O = TypeVar("_O", bound=Options)


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError(f"{path}: {message}")


@dataclass(frozen=True, slots=True)
class LearnerContext:
    """The parts of a run that a learner is made with.

    Attributes:
        backbone: the frozen vision transformer.
        compute: device, precision, and how many images are read at a time.
        seed: decides every random choice of the learner.
        group: the processes that learn each batch together.
        keeps_uncertainty: whether predictions before learning are to have stability and novelty, where the
            learner can compute them.
        refuse: returns the error, to be raised, for an option such as "learner.rank", with its place in the
            configuration.
        folder: the run's directory, where the learner may keep files that have no name; None: there is none.
    """

    backbone: Backbone
    compute: Compute
    seed: int = 0
    group: ProcessGroup = SINGLE_PROCESS
    keeps_uncertainty: bool = False
    refuse: Callable[[str, str], ConfigError] = _refusal
    folder: Path | None = None

    def blocks(self, named: Sequence[int] | None) -> list[int]:
        """Return the blocks whose tokens are the features: those named, or a spread of the last."""
        from streamcl.learners.block_features import evenly_spaced_blocks

        blocks, depth = list(named or evenly_spaced_blocks(self.backbone.depth)), self.backbone.depth
        if max(blocks) >= depth:
            raise self.refuse("learner.blocks", f"block {max(blocks)} does not exist; there are {depth}")
        return blocks


@dataclass(frozen=True, slots=True)
class LearnerFactory(Generic[_O]):
    """A learner that a configuration can name.

    Attributes:
        options: its block of the configuration.
        build: makes the learner, knowing nothing yet.
        distributed: whether several processes can learn each batch together.
        keeps_statistics: whether its statistics can be stored by class or subject.
        keeps_traces: whether it leaves a trace of each sample, which makes that needless.
    """

    options: type[_O]
    build: Callable[[_O, LearnerContext], Learner]
    distributed: bool = False
    keeps_statistics: bool = False
    keeps_traces: bool = False

    def __call__(self, context: LearnerContext, **args: Any) -> Learner:
        """Return the learner with the options in `args`.

        Raises:
            ConfigError: an option is unknown or has an impossible value.
        """
        try:
            options = self.options(**args)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return self.build(options, context)
