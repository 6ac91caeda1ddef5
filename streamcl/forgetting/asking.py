"""Asking a run to forget, and asking again after a failure: what the command line and Python share."""

from __future__ import annotations

from typing import Any

from streamcl.forgetting.ledger import Ledger
from streamcl.forgetting.requests import build_request, request_to_body


def ask(ledger: Ledger, **what: Any) -> str:
    """Put a request into the ledger and return its id; it is durable then. `what`: as for `orders.order`.

    The same key again is the same request, which is tried again where it has failed. Raises ForgettingError
    where the request makes no sense, or the key was used for another one.
    """
    if what.get("key") is not None and what.get("id") is None:
        what["id"] = f"request-{ledger.fingerprint('key', what['key'])[:16]}"
    entry = ledger.submit(request_to_body(build_request(**what)))
    if entry.progress == "failed":
        entry = ledger.retry(entry.id)
    return entry.id


def ask_again(ledger: Ledger, name: str) -> str:
    """Let a request that has failed be tried again, named by its id or its key; returns its id.

    Raises ForgettingError where there is none, or where it is over: done, or refused.
    """
    return ledger.retry(ledger.find(name).id).id
