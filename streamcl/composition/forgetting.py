"""Makes what forgets: the forgetter, its methods in order of preference, and the requests of the file."""

from __future__ import annotations

from contextlib import ExitStack

from streamcl.audit.held_out import HeldOut
from streamcl.audit.relapse import Relapse
from streamcl.audit.utility import Utility
from streamcl.config import RunConfig
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.belongings import Belongings
from streamcl.forgetting.by_first import FirstForgetter, FollowingForgetter
from streamcl.forgetting.closed_form import ClosedForm
from streamcl.forgetting.dropped_adapter import DroppedAdapter
from streamcl.forgetting.dropped_cohort import CrowdedCohort, DroppedCohort
from streamcl.forgetting.fast_ntk import FastNTK
from streamcl.forgetting.forgetter import Forgetter
from streamcl.forgetting.gs_lora import GSLoRA
from streamcl.forgetting.head_rows import HeadRows
from streamcl.forgetting.kept import STATISTICS, Kept
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.mixed_privacy import AllUsers, MixedPrivacy
from streamcl.forgetting.nothing import Nothing
from streamcl.forgetting.orders import order
from streamcl.forgetting.protocol import Method, Telling
from streamcl.ledger import LEDGER, Ledger
from streamcl.metrics import Prequential
from streamcl.processor.parts import Forgetting
from streamcl.protocols import Learner
from streamcl.ranks import Ranks


def build_methods() -> list[Method]:
    """The ways to forget, of equal guarantees the one to take first."""
    return [
        Nothing(),
        AllUsers(),
        DroppedCohort(),
        ClosedForm(),
        DroppedAdapter(),
        MixedPrivacy(),
        CrowdedCohort(),
        HeadRows(),
        GSLoRA(),
        FastNTK(),
    ]


def build_schedule(config: RunConfig) -> list[ForgetRequest]:
    """The requests that the configuration schedules, each with an id that says nothing."""
    return [_order(config, number) for number in range(len(config.forget))]


def _order(config: RunConfig, number: int) -> ForgetRequest:
    options = config.forget[number]
    label, subject, domain = (
        None if name is None else str(name) for name in (options.class_, options.subject, options.domain)
    )
    try:
        return order(
            id=f"scheduled-{options.at}-{number}",
            offset=options.at,
            ids=[str(each) for each in options.ids or ()],
            id_pattern=options.id_pattern,
            offsets=options.offsets,
            guarantee=options.guarantee,
            method=options.method,
            relearn=options.relearn,
            all_users=options.all_users,
            label=label,
            subject=subject,
            domain=domain,
        )
    except ForgettingError as error:
        raise config.refuse(f"forget.{number}", str(error)) from error


def build_forgetter(settings: RunConfig, belongings: Belongings, stack: ExitStack) -> Forgetter:
    """What carries requests out in this run; `stack` closes what it has opened."""
    ledger = Ledger(belongings.folder / LEDGER)
    stack.callback(ledger.close)
    lineage = Lineage(belongings.folder / LINEAGE)
    stack.callback(lineage.close)
    parts = belongings.source.info.holdout
    belongings.gauge = utility = Utility(parts)
    if settings.on_relapse != "ignore":
        held_out = HeldOut(parts)
        belongings.monitor = Relapse(ledger.erased_by, held_out, settings.on_relapse)
    belongings.kept = _kept(settings, belongings, lineage, stack)
    if belongings.kept is not None:  # which is there for requests to be short
        utility.prepare(belongings.learner)
    return Forgetter(belongings, ledger, lineage, build_methods(), schedule=build_schedule(settings))


def _kept(settings: RunConfig, belongings: Belongings, lineage: Lineage, stack: ExitStack) -> Kept | None:
    """The statistics by class or subject, told of all that the learner adds; None where not asked for."""
    learner = belongings.learner
    if settings.statistics is None or not isinstance(learner, Telling):
        return None
    kept = Kept(
        belongings.folder / STATISTICS,
        "class" if settings.statistics == "per_class" else "subject",
        digest=lineage.digest,
        keep=settings.checkpoint.keep if settings.checkpoint else 0,
    )
    stack.callback(kept.close)
    learner.listen(kept.take)
    return kept


def for_the_loop(
    forgetter: Forgetter | None, learner: Learner, scores: Prequential, ranks: Ranks
) -> Forgetting:
    """What the loop asks: the forgetter itself, or on several ranks one that goes by the first rank's."""
    if forgetter is None:
        return FollowingForgetter(learner, scores, ranks)
    return forgetter if ranks.world == 1 else FirstForgetter(forgetter, learner, scores, ranks)
