"""Audits in a run directory: one JSON file each, beside the receipt of the same name."""

from __future__ import annotations

import json
from pathlib import Path

from streamcl import files
from streamcl.audit.report import AuditReport
from streamcl.errors import ForgettingError
from streamcl.forgetting.receipt import receipt_path

AUDITS = "audits"
"""The folder's name in a run directory."""


def save_audit(folder: Path, report: AuditReport) -> Path:
    """Write the audit whole, in place of an earlier one of the same request; its path."""
    path = folder / AUDITS / receipt_path(folder, report.request or "audit").name
    files.make_folder(path.parent)
    files.atomic_write(path, json.dumps(report.to_json(), indent=2).encode())
    return path


def read_audit(folder: Path, request: str) -> AuditReport | None:
    """The saved audit of a request; None where there is none. A damaged one is a ForgettingError."""
    path = folder / AUDITS / receipt_path(folder, request).name
    if not path.exists():
        return None
    try:
        return AuditReport.from_json(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ForgettingError(
            f"{path} is no audit: {error!r:.200}", hint="run streamcl audit again"
        ) from error
