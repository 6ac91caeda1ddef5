"""What keeps the ranks of one run alike: what they agree on before it, at each batch and at each commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.config.load import dump_config
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.errors import ConfigError, DistributedError
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.protocols import CheckpointStore, Learner, State, Stateful
from streamcl.storage.plain_state import state_hash

logger = logging.getLogger(__name__)

DISTRIBUTED_LEARNERS = frozenset(
    {
        *("hybrid", "ridge", "ncm", "slda", "online_lora"),
        *("frozen_linear", "naive_lora", "er", "der_pp", "ewc_pp"),
    }
)
"""Learners whose batches several ranks can learn together."""

DECIDED = (
    *("detector", "scores", "history", "progress"),
    *("quarantine", "predictions", "guard", "shifts", "evaluation"),
)
"""Parts of a processor's state that must be the same on all ranks."""


def check_agreement(settings: RunConfig, group: ProcessGroup) -> None:
    """Raise ConfigError where the ranks cannot run this, or were not all given the same configuration."""
    if group.world_size == 1:
        return
    name = settings.learner.name
    if name not in DISTRIBUTED_LEARNERS:
        raise ConfigError(
            f"the learner {name!r} cannot learn on several ranks",
            hint=f"start it as one process, or choose one of {', '.join(sorted(DISTRIBUTED_LEARNERS))}",
        )
    check_same_everywhere("configuration", dump_config(settings), group)


def check_same_everywhere(what: str, value: Any, group: ProcessGroup) -> None:
    """Raise ConfigError where one rank has another value than the first."""
    told = group.all_gather_object(value)
    other = [rank for rank, each in enumerate(told) if each != told[0]]
    if other:
        raise ConfigError(
            f"rank {other[0]} has another {what} than rank 0",
            hint="every rank must be started with the same files, options and versions",
        )


class ReplicatedLearner:
    """A learner whose lessons are the first rank's, so that whatever follows from one is the same everywhere.

    A step for which one rank's memory is too short ends the run on all of them: the others are in the midst
    of the batch and cannot halve it.
    """

    def __init__(self, learner: Learner, group: ProcessGroup) -> None:
        self._learner, self._group = learner, group

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known."""
        return self._learner.classes

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """One guess per sample, made by this rank alone."""
        return self._learner.predict(samples)

    def learn(self, batch: Batch) -> StepResult:
        """Learn the batch together with the other ranks."""
        try:
            lesson = self._learner.learn(batch)
        except (MemoryError, RuntimeError) as error:
            raise DistributedError(
                f"rank {self._group.rank} could not learn the batch at offset {batch.offset}: {error}",
                hint="where memory is short, a smaller batch_size or more ranks help; "
                "the same command goes on from the last checkpoint",
            ) from error
        return self._group.broadcast_object(lesson)

    def consolidate(self) -> Mapping[str, Any]:
        """On every rank alike, since all were given the same losses."""
        return self._learner.consolidate()

    def state_dict(self) -> State:
        """That of the learner."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self._learner.load_state_dict(state)


class ReplicatedCheckpointStore:
    """The checkpoints of a run on several ranks: the first writes them, all confirm that they are alike.

    vault: None on the other ranks. Where kernels of a GPU have left a rank's learner with other last bits,
    it takes over the first's, which is the one that a checkpoint holds; where ranks have come to other
    decisions, RanksError is raised and nothing is written.
    """

    def __init__(
        self,
        vault: CheckpointStore | None,
        learner: Stateful,
        group: ProcessGroup,
    ) -> None:
        self._vault, self._learner, self._group = vault, learner, group

    def save(self, offset: int, step: int, state: State) -> Any:
        """Commit, on all ranks at once; what the vault says."""
        told = self._group.all_gather_object((state_hash(state["learner"]), state_hash(_decided(state))))
        decisions = [decided for _, decided in told]
        if len(set(decisions)) > 1:
            rank = next(i for i, each in enumerate(decisions) if each != decisions[0])
            raise DistributedError(
                f"rank {rank} has come to another state than rank 0 at offset {offset}",
                hint="ranks need the same software and the same kind of processor; "
                "the same command goes on from the last checkpoint",
            )
        if len({learned for learned, _ in told}) > 1:
            first: State = self._group.broadcast_object(state["learner"] if self._group.is_main else {})
            if self._group.is_main:
                logger.warning(
                    "the ranks' learners differ at offset %d; all go on from the first one's", offset
                )
            else:
                self._learner.load_state_dict(first)
        if self._vault is None:
            return None
        return self._vault.save(offset, step, {**state, "ranks": self._group.world_size})


def _decided(state: State) -> State:
    """What was decided, of the learner its classes; not what only the first rank keeps, or the clock."""
    return {name: state[name] for name in DECIDED}
