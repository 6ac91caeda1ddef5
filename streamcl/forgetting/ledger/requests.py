"""Submitting a request to a run, and retrying one that has failed: what command line and Python share."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from streamcl.errors import ForgettingError, nearest
from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger.ledger import Ledger, LedgerEntry
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage


def submit(ledger: Ledger, request: ForgetRequest) -> LedgerEntry:
    """Put a request into the ledger, where it is durable on return, and return its entry.

    A request with a key that has no id of its own is named by the key, so that the same key again is the same
    request; it is tried again where it has failed. Raise ForgettingError where the key or the id was used for
    another request.
    """
    if request.key is not None:
        request = _named_by(ledger, request, "key", request.key)
    entry = ledger.submit(request.model_dump(mode="json"))
    return ledger.retry(entry.id) if entry.status == "failed" else entry


def submit_from_stream(ledger: Ledger, request: ForgetRequest) -> LedgerEntry:
    """Put a request that a source has yielded into the ledger; yielded again after a crash, it is the same.

    One that has neither id nor key is named by its content and offset. Raise ForgettingError like `submit`.
    """
    content = request.key or request.model_dump_json(exclude={"id"})
    request = _named_by(ledger, request, "key" if request.key else "request", content)
    return ledger.submit(request.model_dump(mode="json"))


def is_known(ledger: Ledger, request: ForgetRequest) -> bool:
    """Return whether a request with the same key is in the ledger already."""
    if request.key is None:
        return False
    try:
        ledger.find(request.key)
    except ForgettingError:
        return False
    return True


def refuse_unmatched(folder: Path, request: ForgetRequest) -> None:
    """Raise ForgettingError where nothing that has passed in the run in `folder` fits the request.

    A slip in a name would otherwise be carried out: nothing is erased, and records to come are dropped.
    """
    if not (folder / LINEAGE).exists() or request.samples:
        return
    with closing(Lineage(folder / LINEAGE)) as lineage:
        with closing(lineage.select(request)) as selection:
            if selection.count:
                return
        classes = lineage.classes() if request.kind == "class" else ()
    what = {"class": f"of the class {request.label!r:.80}", "subject": "of this subject"}.get(request.kind)
    meant = nearest(str(request.label), classes, "known classes") if classes else ""
    if request.kind == "subject":
        meant = "check the spelling: names of subjects are kept as hashes, so no similar one can be named"
    between = " " if meant.endswith("?") else "; "
    raise ForgettingError(
        f"no sample {what or 'that fits the request'} has passed, or all were erased",
        hint=f"{meant}{between if meant else ''}--unseen submits it for records to come",
    )


def retry(ledger: Ledger, name: str) -> LedgerEntry:
    """Let a request that has failed be tried again, named by its id or its key.

    Raise ForgettingError where there is none, or where it is over: done, or refused.
    """
    return ledger.retry(ledger.find(name).id)


def read(entry: LedgerEntry) -> ForgetRequest:
    """Return the request of an entry that is not finished. Raise ForgettingError where it is not valid."""
    if entry.body is None:
        raise ForgettingError(f"request {entry.id!r} has been erased from the ledger")
    return ForgetRequest.model_validate(entry.body)


def _named_by(ledger: Ledger, request: ForgetRequest, kind: str, value: str) -> ForgetRequest:
    """Return the request with an id that follows from a value, unless it was given an id."""
    if "id" in request.model_fields_set:
        return request
    return request.model_copy(update={"id": f"request-{ledger.fingerprint(kind, value)[:16]}"})
