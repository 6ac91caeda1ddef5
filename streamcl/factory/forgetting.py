"""Makes what forgets: the forgetter, its methods in order of preference, and the requests of the file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

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


def build_forgetter(settings: RunConfig, resources: RunResources, stack: ExitStack) -> ForgettingService:
    """Return the forgetting service of a run; `stack` closes what this opens."""
    ledger = Ledger(resources.folder / LEDGER)
    stack.callback(ledger.close)
    lineage = Lineage(resources.folder / LINEAGE)
    stack.callback(lineage.close)
    parts = resources.source.info.holdout
    utility = Utility(parts)
    monitor = None
    if settings.forgetting.on_relapse != "ignore":
        monitor = Relapse(ledger.erased_by, HeldOutSamples(parts), settings.forgetting.on_relapse)
    statistics = _statistics_store(settings, resources, lineage, stack)
    if statistics is not None:  # which is there for requests to be short
        utility.prepare(resources.learner)
    complete = replace(resources, gauge=utility, monitor=monitor, kept=statistics)
    return ForgettingService(complete, ledger, lineage, build_methods(), schedule=build_schedule(settings))


def _statistics_store(
    settings: RunConfig, resources: RunResources, lineage: Lineage, stack: ExitStack
) -> StatisticsStore | None:
    """Return statistics by class or subject that follow what the learner adds; None where not configured."""
    statistics = capabilities_of(resources.learner).statistics
    rows = None if statistics is None else statistics.by_rows
    if settings.forgetting.keep_statistics is None or rows is None:
        return None
    kept = StatisticsStore(
        resources.folder / STATISTICS,
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
