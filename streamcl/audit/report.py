"""The report of an audit: as JSON, as text, as a section of an HTML page, and saved in a run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from markupsafe import Markup

from streamcl.audit.significance import MeasureResult
from streamcl.forgetting.receipts import archive
from streamcl.storage import files, hash_chain
from streamcl.storage.signing import signing_date

Verdict: TypeAlias = Literal["pass", "fail", "cannot tell"]
INFINITY = 1e300
"""Written in place of infinity, for which JSON has no number."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The results of one audit, without ids, names or labels.

    Attributes:
        kind: of the request; a subject's is "samples".
        counts: samples retained, forgotten and held out, as "retain", "forget", "test".
        models: models audited, retrained without the data ("references"), and never made to forget.
        left_out: share of the retained samples that each of them goes without.
        false_alarm_rate: stated chance that a retrained model fails.
        references_failing: share of the references that fail when each is audited alone beside the others.
        unforgotten_failing: share of the models that never forgot which fail so.
        unforgotten_detected: whether the models that never forgot fail as a group.
        results: the measures that make the verdict.
        by_memorisation: LiRA on the quarter of forgotten samples that learning moves least (a negative
            control) and most; no part of the verdict.
        statistics_error: largest relative difference between the audited statistics and those of retraining;
            None for learners without statistics.
        reruns: further runs of the stream that made the models, 0 for closed forms.
        seconds: duration of the audit.
        request: id of the erasure.
        learner: hash of the audited learner's state.
    """

    kind: Literal["samples", "class"]
    counts: dict[str, int]
    models: dict[str, int]
    left_out: float
    false_alarm_rate: float
    references_failing: float
    unforgotten_failing: float
    unforgotten_detected: bool
    results: tuple[MeasureResult, ...]
    by_memorisation: tuple[MeasureResult, ...] = ()
    statistics_error: float | None = None
    reruns: int = 0
    seconds: float = 0.0
    request: str | None = None
    learner: str | None = None

    @property
    def verdict(self) -> Verdict:
        """Return "fail" where a measure is outside the references' range.

        "cannot tell" where none is, and none would be for models that never forgot either.
        """
        if not all(result.passed for result in self.results):
            return "fail"
        return "pass" if self.unforgotten_detected else "cannot tell"

    def sentence(self) -> str:
        """Return the verdict in words."""
        failed = ", ".join(f"{each.measure} {each.outcome}" for each in self.results if not each.passed)
        if failed:
            return f"The audited model is not like models retrained without the data: {failed}."
        like = "The audited model is like models retrained without the data"
        if self.unforgotten_detected:
            return f"{like}; a model that never forgot is not."
        return (
            f"{like}, but so is a model that never forgot: the erased data left too little trace to detect."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, `verdict` and `sentence` among them."""
        return {"verdict": self.verdict, "sentence": self.sentence(), **asdict(self)}


def text_table(report: AuditReport) -> str:
    """Return the report as text with aligned columns."""
    head = ("measure", "audited", "references", "unforgotten", "p", "")
    rows = [head, *map(_row, report.results)]
    rows += [(*_row(each)[:5], "control") for each in report.by_memorisation]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(_aligned(row[i], widths[i], i) for i in range(len(head))).rstrip() for row in rows]
    verdict = f"{report.verdict.upper()}: {report.sentence()}"
    return "\n".join([verdict, "", *lines, "", *notes(report)])


def html_section(report: AuditReport) -> Markup:
    """Return the report as one `<section class="audit">`; the row of a failed measure has class "bad".

    The section loads nothing and has no style of its own.
    """
    template = archive.html_environment("audit").get_template("section.html.j2")
    return Markup(template.render(report=report, notes=notes(report)))


def save_audit(
    folder: Path,
    report: AuditReport,
    *,
    signing_key: archive.SigningKeySource = archive.no_signing_key,
    clock: Callable[[], float] = time.time,
) -> Path:
    """Write the audit atomically, chained to the one before and bound to its receipt; return its path.

    A second audit of the same request gets a file of its own. The receipt's page shows the newest.

    Args:
        folder: of the run.
        report: what is written.
        signing_key: gives the key that signs it.
        clock: returns seconds since 1970.
    """
    request = report.request or "audit"
    receipt = archive.newest_receipt(folder, request)
    files.make_folder(folder / archive.AUDITS)
    path = _free(folder, archive.file_name(request))
    with signing_key() as key:
        made = signing_date(key, clock())
    content = {
        "request": request,
        "receipt": hash_chain.sha256_of(receipt) if receipt.exists() else None,
        "made": made,
        "audit": _finite(report.to_json()),
    }
    head = hash_chain.ChainHead(folder / archive.AUDITS, "audit")
    head.write(head.next_link(content, key), path)
    if key is not None:
        head.sign(key)
    if receipt.exists():
        archive.write_page(receipt, archive.read_receipt(receipt), audit=html_section(report))
    return path


def notes(report: AuditReport) -> list[str]:
    """Return the number of samples and models behind the figures, a sentence each."""
    models, counts = report.models, report.counts
    lines = [
        f"{counts['forget']} samples forgotten, {counts['retain']} retained, {counts['test']} held out; "
        f"{models['references']} references, each without {report.left_out:.0%} of the retained samples.",
        f"A retrained model fails at most {report.false_alarm_rate:.0%} of the time. Failing alone: "
        f"{report.references_failing:.1%} of the references, "
        f"{report.unforgotten_failing:.1%} of the models that never forgot.",
    ]
    if report.statistics_error is not None:
        lines.append(
            f"The statistics differ from those of retraining by {report.statistics_error:.1e} (relative)."
        )
    if report.reruns:
        lines.append(
            f"The stream was run again {report.reruns} times; U-LiRA and KLoM compare "
            f"{models['forgotten again']} runs that carried out the request again."
        )
    return [*lines, f"{report.seconds:.1f} seconds."]


def _row(result: MeasureResult) -> tuple[str, str, str, str, str, str]:
    shown = "" if result.unforgotten is None else f"{result.unforgotten:.3f}"
    references = f"{result.reference_mean:.3f} ± {result.reference_std:.3f}"
    return result.measure, f"{result.value:.3f}", references, shown, f"{result.p_value:.3f}", result.outcome


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 0 < column < 5 else cell.ljust(width)


def _free(folder: Path, name: str) -> Path:
    paths = (
        folder / archive.AUDITS / f"{name}{ending}.json"
        for ending in ("", *(f".{n}" for n in range(2, 10**6)))
    )
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
