"""The request of a receipt once more, for a run of the same stream, which has the names that it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcl.audit.stream_split import SortedStream
from streamcl.config.options.hybrid import CohortOptions
from streamcl.config.options.run import RunConfig
from streamcl.events import ForgetRequest
from streamcl.forgetting.requests import build_request

ID = "audit"


def asked_again(
    receipt: Mapping[str, Any], found: SortedStream, config: RunConfig, *, carried: bool
) -> ForgetRequest:
    """The request at the same offset, to the same method.

    What it names follows from the samples that were forgotten: their class, the subject or all users, the
    domain or the stretch where that is a cohort, else their ids. carried: it brings the samples.
    """
    return build_request(
        id=ID,
        offset=int(receipt["offset"]),
        method=receipt["method"],
        samples=found.forgotten if carried else (),
        **_named(receipt["kind"], found, config),
    )


def noted_again(receipt: Mapping[str, Any], found: SortedStream, end: int, *, carried: bool) -> ForgetRequest:
    """A request at the stream's end, to the same method, for samples that were kept and noted."""
    return build_request(
        id=ID,
        offset=end,
        method=receipt["method"],
        samples=found.noted if carried else (),
        ids=[sample.id for sample in found.noted],
    )


def _named(kind: str, found: SortedStream, config: RunConfig) -> dict[str, Any]:
    if kind == "class":
        return {"label": next(iter(found.gone.values()))}
    if kind == "subject":
        subject = next(iter(found.subjects)) if len(found.subjects) == 1 else None
        return {"all_users": True} if subject is None else {"subject": subject}
    if isinstance(config.learner, CohortOptions):
        if config.learner.by == "domain" and len(found.domains) == 1:
            return {"domain": next(iter(found.domains))}
        if config.learner.by == "stretch":
            return {"offsets": (min(found.gone), max(found.gone) + 1)}
    return {"ids": found.ids}
