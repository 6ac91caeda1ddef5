"""Makes what forgets: the methods in the order of preference, and the requests that the file schedules."""

from __future__ import annotations

from streamcl.config import RunConfig
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.closed_form import ClosedForm
from streamcl.forgetting.dropped_adapter import DroppedAdapter
from streamcl.forgetting.dropped_cohort import CrowdedCohort, DroppedCohort
from streamcl.forgetting.fast_ntk import FastNTK
from streamcl.forgetting.gs_lora import GSLoRA
from streamcl.forgetting.head_rows import HeadRows
from streamcl.forgetting.mixed_privacy import AllUsers, MixedPrivacy
from streamcl.forgetting.nothing import Nothing
from streamcl.forgetting.orders import order
from streamcl.forgetting.protocol import Method


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
