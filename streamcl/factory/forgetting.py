"""Builds the forgetting service of a run, its methods, and the requests that the configuration schedules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.events import ForgetRequest
from streamcl.forgetting.distributed import ReplicatedForgetting
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.forgetting.monitoring.held_out import HeldOutSamples
from streamcl.forgetting.monitoring.relapse import RelapseMonitor
from streamcl.forgetting.monitoring.utility import UtilityProbe
from streamcl.forgetting.service import ForgettingService
from streamcl.forgetting.statistics.store import STATISTICS, StatisticsStore
from streamcl.protocols import Stateful
from streamcl.registry import FORGETTING


def build_methods() -> list[ForgettingMethod]:
    """Return every forgetting method there is, those of installed packages included."""
    return [FORGETTING.make(name, {}) for name in FORGETTING.names()]


def build_schedule(config: RunConfig) -> list[ForgetRequest]:
    """Return the requests that the configuration schedules, each with an id that names nobody."""
    return [
        ForgetRequest(id=f"scheduled-{options.offset}-{number}", **options.model_dump())
        for number, options in enumerate(config.forgetting.requests)
    ]


def build_forgetting(settings: RunConfig, resources: RunResources, stack: ExitStack) -> ForgettingService:
    """Return what carries requests out in this run; `stack` closes what it opens.

    resources: what of the run an erasure reaches, without what is built here: statistics, utility, relapse.
    """
    ledger = Ledger(resources.folder / LEDGER)
    stack.callback(ledger.close)
    keep = settings.checkpoint.keep if settings.checkpoint else 0
    lineage = Lineage(resources.folder / LINEAGE, keep=keep)
    stack.callback(lineage.close)
    parts, version = resources.holdout, resources.holdout_version
    utility, relapse = UtilityProbe(parts, version, expects_changes=settings.answer.stability), None
    if settings.forgetting.on_relapse != "ignore":
        held_out = HeldOutSamples(parts, version)
        relapse = RelapseMonitor(ledger.erased_by, held_out, settings.forgetting.on_relapse)
    statistics = _statistics(settings, resources, lineage, stack)
    if statistics is not None:  # their purpose is a short pause at a request, so the samples are read now
        utility.prepare(resources.learner)
    resources = replace(resources, statistics=statistics, utility=utility, relapse=relapse)
    return ForgettingService(resources, ledger, lineage, build_methods(), schedule=build_schedule(settings))


def _statistics(
    settings: RunConfig, resources: RunResources, lineage: Lineage, stack: ExitStack
) -> StatisticsStore | None:
    """Return the statistics by class or subject, which observe the learner; None where not asked for."""
    observed = capabilities_of(resources.learner).statistics
    rows = None if observed is None else observed.by_rows
    if settings.forgetting.keep_statistics is None or rows is None:
        return None
    store = StatisticsStore(
        resources.folder / STATISTICS,
        "class" if settings.forgetting.keep_statistics == "per_class" else "subject",
        digest=lineage.digest,
        keep=settings.checkpoint.keep if settings.checkpoint else 0,
    )
    stack.callback(store.file.close)
    rows.on_learned(store.add)
    return store


def loop_forgetting(
    service: ForgettingService | None, erased_from: Sequence[Stateful], group: ProcessGroup
) -> ForgettingService | ReplicatedForgetting:
    """Return what has every role of forgetting in the loop: the service, or one that follows rank 0's.

    erased_from: the learner and the figures that an erasure changes.
    """
    if service is None or group.world_size > 1:
        return ReplicatedForgetting(service, erased_from, group)
    return service
