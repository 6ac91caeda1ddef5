"""Makes what forgets: the forgetter, its methods in order of preference, and the requests of the file."""

from __future__ import annotations

from contextlib import ExitStack

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.evaluation.prequential import Prequential
from streamcl.events import ForgetRequest
from streamcl.forgetting.distributed import FirstForgetter, FollowingForgetter
from streamcl.forgetting.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.forgetting.monitoring.held_out import HeldOutSamples
from streamcl.forgetting.monitoring.relapse import Relapse
from streamcl.forgetting.monitoring.utility import Utility
from streamcl.forgetting.run_resources import RunResources
from streamcl.forgetting.service import ForgettingService
from streamcl.forgetting.statistics.store import STATISTICS, StatisticsStore
from streamcl.processor.ports import Forgetting
from streamcl.protocols import Learner
from streamcl.registry import FORGETTING


def build_methods() -> list[ForgettingMethod]:
    """Return every forgetting method there is, those of installed packages included."""
    return [FORGETTING.make(name, {}) for name in FORGETTING.names()]


def build_schedule(config: RunConfig) -> list[ForgetRequest]:
    """The requests that the configuration schedules, each with an id that says nothing."""
    return [
        ForgetRequest(id=f"scheduled-{options.offset}-{number}", **options.model_dump())
        for number, options in enumerate(config.forgetting.requests)
    ]


def build_forgetter(settings: RunConfig, belongings: RunResources, stack: ExitStack) -> ForgettingService:
    """What carries requests out in this run; `stack` closes what it has opened."""
    ledger = Ledger(belongings.folder / LEDGER)
    stack.callback(ledger.close)
    lineage = Lineage(belongings.folder / LINEAGE)
    stack.callback(lineage.close)
    parts = belongings.source.info.holdout
    belongings.gauge = utility = Utility(parts)
    if settings.forgetting.on_relapse != "ignore":
        held_out = HeldOutSamples(parts)
        belongings.monitor = Relapse(ledger.erased_by, held_out, settings.forgetting.on_relapse)
    belongings.kept = _kept(settings, belongings, lineage, stack)
    if belongings.kept is not None:  # which is there for requests to be short
        utility.prepare(belongings.learner)
    return ForgettingService(belongings, ledger, lineage, build_methods(), schedule=build_schedule(settings))


def _kept(
    settings: RunConfig, belongings: RunResources, lineage: Lineage, stack: ExitStack
) -> StatisticsStore | None:
    """The statistics by class or subject, told of all that the learner adds; None where not asked for."""
    statistics = capabilities_of(belongings.learner).statistics
    rows = None if statistics is None else statistics.by_rows
    if settings.forgetting.keep_statistics is None or rows is None:
        return None
    kept = StatisticsStore(
        belongings.folder / STATISTICS,
        "class" if settings.forgetting.keep_statistics == "per_class" else "subject",
        digest=lineage.digest,
        keep=settings.checkpoint.keep if settings.checkpoint else 0,
    )
    stack.callback(kept.close)
    rows.on_learned(kept.add)
    return kept


def for_the_loop(
    forgetter: ForgettingService | None, learner: Learner, scores: Prequential, group: ProcessGroup
) -> Forgetting:
    """What the loop asks: the forgetter itself, or on several ranks one that goes by the first rank's."""
    if forgetter is None:
        return FollowingForgetter(learner, scores, group)
    return forgetter if group.world_size == 1 else FirstForgetter(forgetter, learner, scores, group)
