"""Saves audits in a run directory: a hash chain of files, each bound to its receipt and shown on its page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcl.audit.report import AuditReport, html_section
from streamcl.forgetting.receipts.archive import AUDITS, file_name, newest_receipt, read_receipt
from streamcl.forgetting.receipts.page import write_page
from streamcl.storage import files, hash_chain

INFINITY = 1e300
"""Written in place of infinity, for which JSON has no number."""


def save_audit(folder: Path, report: AuditReport, *, clock: Callable[[], float] = time.time) -> Path:
    """Write the audit atomically, chained to the one before and bound to its receipt; return its path.

    A second audit of the same request gets a file of its own. The receipt's page shows the newest.

    Args:
        folder: of the run.
        report: of the audit.
        clock: seconds since 1970.
    """
    request = report.request or "audit"
    receipt = newest_receipt(folder, request)
    files.make_folder(folder / AUDITS)
    path = _free(folder, file_name(request))
    content = {
        "request": request,
        "receipt": hash_chain.sha256_of(receipt) if receipt.exists() else None,
        "made": clock(),
        "audit": _finite(report.to_json()),
    }
    hash_chain.write_link(path, hash_chain.ChainHead(folder / AUDITS, "audit").next_link(content))
    if receipt.exists():
        write_page(receipt, read_receipt(receipt), audit=html_section(report))
    return path


def _free(folder: Path, name: str) -> Path:
    paths = (folder / AUDITS / f"{name}{ending}.json" for ending in ("", *(f".{n}" for n in range(2, 10**6))))
    return next(path for path in paths if not path.exists())


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if math.isnan(value):
            return None
        case float():
            return max(-INFINITY, min(INFINITY, value))
    return value
