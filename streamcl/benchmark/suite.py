"""The options of a suite (sources, protocols, learners, seeds) and the cells that they define."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, StringConstraints

from streamcl.config.load import config_from_dict
from streamcl.config.messages import checked_options
from streamcl.config.options.base import Args, BlockIndex, Options, ViewCount
from streamcl.config.options.run import RunConfig
from streamcl.config.yaml import read_yaml
from streamcl.errors import ConfigError

SUITES = Path(__file__).parents[2] / "benchmarks" / "suites"
"""Folder of the suites that are known by name."""

EntryName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=60)
]
SeedCount: TypeAlias = Annotated[int, Field(ge=1, le=1000)]


class SuiteSource(Options):
    """One data set, and its part of a run's configuration."""

    needs: list[str] = Field([], description="Files without which this source is skipped.")
    protocols: list[EntryName] = Field(min_length=1, description="Which protocols it is streamed by.")
    run: Args = Field(description="The part of a run's configuration that this source decides.")


class SuiteProtocol(Options):
    """One order of a stream, and its evaluation."""

    run: Args = Field({}, description="The part of a run's configuration that this protocol decides.")


class JointOptions(Options):
    """Joint LoRA, the upper bound: several epochs over all images of the stream.

    It is no stream learner, so it exists in suites only. Its figures are those of a ridge head fitted on the
    adapted features at the end, and those of its linear head.
    """

    epochs: int = Field(3, ge=1, le=1000, description="Passes over everything.")
    learning_rate: float = Field(3e-3, gt=0, le=10, description="Adam's step size.")
    rank: int = Field(4, ge=1, le=1024, description="Rank of the adapters.")
    blocks: list[BlockIndex] | None = Field(
        None, description="Blocks of the refitted head; null: every second of the last, four."
    )
    trace_ridge: float = Field(1e-3, gt=0, description="Ridge of the refitted head.")
    tta_views: ViewCount = Field(1, description="Views of an image that the refitted head reads.")


class SuiteLearner(Options):
    """One learner, and the cells that it takes part in."""

    run: Args = Field({}, description="The part of a run's configuration that this learner decides.")
    joint: JointOptions | None = Field(None, description="The joint upper bound in place of a learner.")
    only: list[str] = Field(["*"], description="Patterns of source/protocol that it is measured on.")
    seeds: SeedCount | None = Field(None, description="Fewer seeds than the suite's; null: as many.")


class Suite(Options):
    """All cells of a benchmark."""

    title: str = Field(description="The heading of the results.")
    about: str = Field("", description="What stands below the heading.")
    seeds: SeedCount = Field(3, description="Seeds 0, 1, ... of order and learner.")
    run: Args = Field({}, description="What the configuration of every cell begins with.")
    protocols: dict[EntryName, SuiteProtocol] = Field(min_length=1, description="Orders by name.")
    sources: dict[EntryName, SuiteSource] = Field(min_length=1, description="Data sets by name.")
    learners: dict[EntryName, SuiteLearner] = Field(min_length=1, description="Learners by name.")


@dataclass(frozen=True, slots=True)
class CellKey:
    """The names of a source, a protocol and a learner of the suite, and a seed."""

    source: str
    protocol: str
    learner: str
    seed: int

    @property
    def stream(self) -> str:
        """source/protocol."""
        return f"{self.source}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Cell(CellKey):
    """One run of the suite; missing: a file that it needs and that does not exist, else None."""

    config: RunConfig
    joint: JointOptions | None
    missing: str | None

    @property
    def folder(self) -> Path:
        """The cell's run directory."""
        return Path(str(self.config.run_dir))

    @property
    def id(self) -> str:
        """source/protocol/learner/seed-N, also its path below the output folder."""
        return f"{self.stream}/{self.learner}/seed-{self.seed}"


def load_suite(name: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> Suite:
    """Return the suite of a YAML file, or a shipped one by its name.

    Raises:
        ConfigError: with every fault of the file.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = SUITES / f"{name}.yaml"
        if not path.exists():
            known = sorted(each.stem for each in SUITES.glob("*.yaml"))
            raise ConfigError(
                f"no suite is named {str(name)!r}", hint=f"give a file, or one of: {', '.join(known)}"
            )
    return checked_options(read_yaml(path, os.environ if environment is None else environment), Suite)


def cells(suite: Suite, out: Path, *, seeds: int | None = None, pattern: str = "*") -> list[Cell]:
    """Return every cell whose id matches the pattern, in the order of the suite.

    seeds: number of seeds in place of the suite's.

    Raises:
        ConfigError: with every fault of every cell's configuration.
    """
    found: list[Cell] = []
    problems: dict[str, None] = {}
    wanted = suite.seeds if seeds is None else seeds
    for source, protocol, learner in _rows(suite):
        place = f"{source}/{protocol}/{learner}"
        for seed in range(min(wanted, suite.learners[learner].seeds or wanted)):
            if not fnmatch(f"{place}/seed-{seed}", pattern):
                continue
            try:
                found.append(_cell(suite, out, (source, protocol, learner), seed))
            except ConfigError as error:
                problems |= dict.fromkeys(f"{place}: {each}" for each in error.problems or (str(error),))
    if problems:
        raise ConfigError("the suite has cells that cannot run", problems=tuple(problems))
    if not found:
        raise ConfigError(f"no cell of the suite matches {pattern!r}")
    return found


def _rows(suite: Suite) -> Iterator[tuple[str, str, str]]:
    for source, options in suite.sources.items():
        for protocol in options.protocols:
            if protocol not in suite.protocols:
                raise ConfigError(
                    f"sources.{source}: there is no protocol {protocol!r}",
                    hint=f"known: {', '.join(suite.protocols)}",
                )
            for learner, entry in suite.learners.items():
                if any(fnmatch(f"{source}/{protocol}", pattern) for pattern in entry.only):
                    yield source, protocol, learner


def _cell(suite: Suite, out: Path, row: tuple[str, str, str], seed: int) -> Cell:
    source, protocol, learner = row
    entry, origin = suite.learners[learner], suite.sources[source]
    folder = out / "cells" / source / protocol / learner / f"seed-{seed}"
    own = {"name": f"{source}-{protocol}-{learner}-{seed}"[:100], "seed": seed, "run_dir": str(folder)}
    parts = (suite.run, origin.run, suite.protocols[protocol].run, entry.run, own)
    config = config_from_dict(_merged(*parts))
    missing = next((path for path in origin.needs if not Path(path).exists()), None)
    return Cell(source, protocol, learner, seed, config, entry.joint, missing)


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings recursively; later values replace earlier ones."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            inner = result.get(key)
            if isinstance(inner, dict) and isinstance(value, Mapping):
                result[key] = _merged(inner, value)
            else:
                result[key] = copy.deepcopy(value)
    return result
