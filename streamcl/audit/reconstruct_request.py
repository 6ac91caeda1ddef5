"""Reconstructs a request from its receipt for a further run of the stream; a receipt holds no names."""

from __future__ import annotations

from typing import Any

from streamcl.audit.stream_split import StreamSplit
from streamcl.config.options.run import RunConfig
from streamcl.events import ForgetRequest
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.learners.cohort_adapters import CohortAdaptersOptions


def reconstruct_request(
    receipt: Receipt, split: StreamSplit, config: RunConfig, *, with_samples: bool
) -> ForgetRequest:
    """Return the request at the same offset, to the same method.

    Its selector follows from the forgotten samples: their class, the subject or all users, the domain or the
    range of offsets where that is a cohort, else their ids.

    Args:
        receipt: of the erasure.
        split: of the stream.
        config: of the run.
        with_samples: the request carries the samples, for a source that cannot fetch them.
    """
    return ForgetRequest(
        id="audit",
        offset=receipt.offset,
        method=receipt.method or "auto",
        samples=split.forgotten if with_samples else (),
        **_selector(receipt.kind, split, config),
    )


def request_for_swapped(
    receipt: Receipt, split: StreamSplit, end: int, *, with_samples: bool
) -> ForgetRequest:
    """Return a request at offset `end`, to the same method, for the samples whose labels are swapped."""
    return ForgetRequest(
        id="audit",
        offset=end,
        method=receipt.method or "auto",
        samples=split.swapped if with_samples else (),
        ids=[sample.id for sample in split.swapped],
    )


def _selector(kind: str, split: StreamSplit, config: RunConfig) -> dict[str, Any]:
    if kind == "class":
        return {"label": next(iter(split.gone.values()))}
    if kind == "subject":
        subject = next(iter(split.subjects)) if len(split.subjects) == 1 else None
        return {"all_users": True} if subject is None else {"subject": subject}
    if isinstance(config.learner, CohortAdaptersOptions):
        if config.learner.cohort_by == "domain" and len(split.domains) == 1:
            return {"domain": next(iter(split.domains))}
        if config.learner.cohort_by == "offset_range":
            return {"offsets": (min(split.gone), max(split.gone) + 1)}
    return {"ids": split.ids}
