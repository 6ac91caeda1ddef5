"""What receipt and log say of a request itself: times and salted hashes, no names, no ids of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger import Ledger
from streamcl.sinks.redaction import RedactionTarget


def receipt_header(request: ForgetRequest, ledger: Ledger, now: float, config: str) -> dict[str, Any]:
    """What the receipt begins with. now: when the request is over. config: the run's fingerprint."""
    return {
        "request": request.id,
        "key": None if request.key is None else ledger.fingerprint("key", request.key),
        "kind": request.kind,
        "asked": request.guarantee,
        "received": ledger.entry(request.id).received,
        "completed": now,
        "deadline": request.deadline,
        "late_by": None if request.deadline is None else max(0.0, now - request.deadline),
        "relearn": request.relearn,
        "config": config,
        "scope": {},
    }


def scope_hashes(target: RedactionTarget, ledger: Ledger) -> dict[str, Any]:
    """The scope by salted hashes, which `verify` looks for in what is kept."""
    ids = sorted(ledger.fingerprint("sample", name) for name in target.ids)
    label = None if target.label is None else ledger.fingerprint("class", target.label)
    return {"ids": ids, "class": label}


def log_entry(request: ForgetRequest, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What events.jsonl shows."""
    names = ("outcome", "method", "guarantee")
    figures = {name: outcome[name] for name in names if name in outcome}
    learned = outcome.get("scope", {}).get("learned", 0)
    reason = outcome.get("why") or outcome.get("reason")
    return {
        "reason": reason,
        "request": request.id,
        "request_kind": request.kind,
        "samples": learned,
        **figures,
    }
