"""The rows of the report's table of requests to forget, with their receipts, audits and relapse tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.archive import read_audits, read_receipts
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.report.reading import RunLog

MAX_REQUESTS = 200
KINDS = {"samples": "samples", "subject": "a subject", "class": "a class"}


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request; page: the receipt's page relative to the report, audit: the newest verdict or ""."""

    offset: int | None
    request: str
    kind: str
    samples: int | None
    outcome: str
    guarantee: str
    method: str
    page: str
    audit: str

    @property
    def good(self) -> bool:
        """Whether it was carried out and no audit failed."""
        return self.outcome == "done" and self.audit != "fail"


def request_rows(folder: Path, run: RunLog) -> list[RequestRow]:
    """Return a row for each receipt in order; damaged receipts are named in the run's notes."""
    try:
        receipts, audits = read_receipts(folder), read_audits(folder)
    except ForgettingError as error:
        run.notes.append(f"Receipts cannot be shown: {error}.")
        return []
    verdicts = {content["request"]: content["audit"]["verdict"] for _, content in audits}
    return [_row(path, receipt, verdicts) for path, receipt in receipts]


def _row(path: Path, receipt: Receipt, verdicts: Mapping[str, str]) -> RequestRow:
    return RequestRow(
        offset=receipt.offset,
        request=receipt.request,
        kind=KINDS[receipt.kind],
        samples=receipt.scope.learned,
        outcome=receipt.outcome,
        guarantee=receipt.guarantee or "",
        method=receipt.method or receipt.reason or "",
        page=f"receipts/{quote(path.with_suffix('.html').name)}",
        audit=verdicts.get(receipt.request, ""),
    )


def relapse_sentence(run: RunLog) -> str:
    """Return the results of the relapse tests in one sentence; empty where there were none."""
    tests, relapses = run.events.get("retest", []), run.events.get("relapse", [])
    if not tests:
        return ""
    times = "once" if len(tests) == 1 else f"{len(tests):,} times"
    text = f"Erased data were tested for relapse {times}, after shifts and at the end"
    if not relapses:
        return f"{text}; none was found."
    again = sum(1 for event in relapses if event.get("again"))
    return f"{text}; {len(relapses):,} relapses were found, {again:,} of which were erased again."
