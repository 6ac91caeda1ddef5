"""Keeps the ranks of one run in agreement: on its configuration, on each step, and on each commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.config.load import dump_config
from streamcl.config.options.learner import learner_factory, learner_name
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.errors import ConfigError, DistributedError
from streamcl.events import Batch, Prediction, Sample, StepResult
from streamcl.protocols import CheckpointStore, Learner, State, Stateful
from streamcl.registry import LEARNERS
from streamcl.storage.plain_state import state_hash

logger = logging.getLogger(__name__)

REPLICATED_PARTS = (
    *("detector", "scores", "history", "progress", "held_out"),
    *("quarantine", "predictions", "guard", "shifts", "evaluation"),
)
"""Parts of a processor's state that must be the same on all ranks; a run without held-out samples of its own
has no state of them."""


def check_agreement(settings: RunConfig, group: ProcessGroup) -> None:
    """Raise ConfigError where several ranks cannot run this configuration or were given different ones."""
    if group.world_size == 1:
        return
    if not getattr(learner_factory(settings.learner), "distributed", False):
        able = [name for name in LEARNERS.built_in if getattr(LEARNERS.find(name), "distributed", False)]
        raise ConfigError(
            f"the learner {learner_name(settings.learner)!r} cannot learn on several ranks",
            hint=f"start it as one process, or choose one of {', '.join(sorted(able))}",
        )
    check_equal_on_all_ranks("configuration", dump_config(settings), group)


def check_equal_on_all_ranks(what: str, value: Any, group: ProcessGroup) -> None:
    """Raise ConfigError, naming `what`, where a rank's value differs from rank 0's."""
    if (other := _first_other(group.all_gather_object(value))) is not None:
        raise ConfigError(
            f"rank {other} has a different {what} from rank 0",
            hint="every rank must be started with the same files, options and versions",
        )


class ReplicatedLearner:
    """A learner of which every rank uses rank 0's step result, so that all later decisions are the same.

    A step that fails on one rank, for lack of memory say, ends the run on all of them: the others are in the
    middle of the batch and cannot halve it.
    """

    def __init__(self, learner: Learner, group: ProcessGroup) -> None:
        self._learner, self._group = learner, group

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, in the order of their columns."""
        return self._learner.classes

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """Return one prediction per sample, computed by this rank alone."""
        return self._learner.predict(samples)

    def learn(self, batch: Batch) -> StepResult:
        """Learn the batch together with the other ranks; return rank 0's result."""
        try:
            result = self._learner.learn(batch)
        except (MemoryError, RuntimeError) as error:
            raise DistributedError(
                f"rank {self._group.rank} could not learn the batch at offset {batch.offset}: {error}",
                hint="where memory is short, a smaller batch_size or more ranks help; "
                "the same command continues from the last checkpoint",
            ) from error
        return self._group.broadcast_object(result)

    def consolidate(self) -> Mapping[str, Any]:
        """Consolidate; all ranks do so at the same step, since their detectors saw the same losses."""
        return self._learner.consolidate()

    def state_dict(self) -> State:
        """Return the learner's state."""
        return self._learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self._learner.load_state_dict(state)


class ReplicatedCheckpointStore:
    """The checkpoints of a run on several ranks: rank 0 writes them, after all have compared their states.

    store: None on all ranks but the first. A learner that differs from rank 0's, in the last bits by a GPU's
    kernels, is replaced by rank 0's, which the checkpoint holds. Where ranks differ in decisions,
    DistributedError is raised and nothing is written.
    """

    def __init__(self, store: CheckpointStore | None, learner: Stateful, group: ProcessGroup) -> None:
        self._store, self._learner, self._group = store, learner, group

    def save(self, offset: int, step: int, state: State) -> Any:
        """Commit, on all ranks at once; return the result of rank 0's store on all."""
        decided = {name: state.get(name) for name in REPLICATED_PARTS}
        hashes = self._group.all_gather_object((state_hash(state["learner"]), state_hash(decided)))
        if (rank := _first_other([decisions for _, decisions in hashes])) is not None:
            raise DistributedError(
                f"rank {rank} has a different state from rank 0 at offset {offset}",
                hint="ranks need the same software and the same kind of processor; "
                "the same command continues from the last checkpoint",
            )
        if len({learned for learned, _ in hashes}) > 1:
            first: State = self._group.broadcast_object(state["learner"] if self._group.is_main else {})
            if self._group.is_main:
                logger.warning("the ranks' learners differ at offset %d; all continue from rank 0's", offset)
            else:
                self._learner.load_state_dict(first)
        saved = None
        if self._store is not None:
            saved = self._store.save(offset, step, {**state, "ranks": self._group.world_size})
        return self._group.broadcast_object(saved)

    def oldest_step(self) -> int | None:
        """Return the step of rank 0's oldest checkpoint, on all ranks."""
        oldest = None if self._store is None else self._store.oldest_step()
        found: int | None = self._group.broadcast_object(oldest)
        return found


def _first_other(values: Sequence[Any]) -> int | None:
    """Return the first rank whose value differs from rank 0's, None where all are equal."""
    return next((rank for rank, each in enumerate(values) if each != values[0]), None)
