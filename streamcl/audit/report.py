"""What an audit found, in plain values: for JSON, for the terminal, for the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from streamcl.audit.significance import Finding

Verdict: TypeAlias = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """One audit; no ids, no names, no labels.

    counts: samples retained, forgotten, tested. models: how many were audited, retrained without the data
    (references), and never made to forget. left_out: the share of retained samples that each goes without.
    rate: the stated chance that a retrained model fails. references_failing: the share of the references
    that fail when each is pushed through the audit of the others, by the measures of single models.
    unforgotten_failing: the share of the models that never forgot which fail so. findings: judged; they
    make the verdict. by_memorisation: membership attacks on the quarter of forgotten samples that learning
    moves least (a negative control) and most; they do not. sums: the largest relative difference between the
    audited sums and those of retraining, where there are sums. reruns: how often the stream was run again
    for the models, where there are none. learner: the audited learner's hash.
    """

    kind: Literal["samples", "class"]
    counts: dict[str, int]
    models: dict[str, int]
    left_out: float
    rate: float
    references_failing: float
    unforgotten_failing: float
    unforgotten_seen: bool
    findings: tuple[Finding, ...]
    by_memorisation: tuple[Finding, ...] = ()
    sums: float | None = None
    reruns: int = 0
    seconds: float = 0.0
    request: str | None = None
    learner: str | None = None

    @property
    def verdict(self) -> Verdict:
        """fail: a measure is out of the references' range.

        cannot tell: none is, but none would be out of it for models that never forgot either.
        """
        if not all(finding.good for finding in self.findings):
            return "fail"
        return "pass" if self.unforgotten_seen else "cannot tell"

    def sentence(self) -> str:
        """The verdict in plain words."""
        bad = [finding for finding in self.findings if not finding.good]
        if bad:
            told = ", ".join(f"{finding.measure} {finding.outcome}" for finding in bad)
            return f"The audited model is not like models retrained without the data: {told}."
        like = "The audited model is like models retrained without the data"
        if self.unforgotten_seen:
            return f"{like}; one that never forgot is not."
        return f"{like}, but so is one that never forgot: what was erased left too little trace to see."

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AuditReport:
        """The report that gave these values."""
        fields = {name: value for name, value in values.items() if name not in {"verdict", "sentence"}}
        for name in ("findings", "by_memorisation"):
            fields[name] = tuple(Finding(**each) for each in fields[name])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `verdict` and `sentence` are among them."""
        return {"verdict": self.verdict, "sentence": self.sentence(), **asdict(self)}


def text_table(report: AuditReport) -> str:
    """The report as text, its figures aligned in columns."""
    head = ("measure", "audited", "references", "unforgotten", "p", "")
    rows = [head, *map(_row, report.findings)]
    rows += [(*_row(each)[:5], "control") for each in report.by_memorisation]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(_set(row[i], widths[i], i) for i in range(len(head))).rstrip() for row in rows]
    verdict = f"{report.verdict.upper()}: {report.sentence()}"
    return "\n".join([verdict, "", *lines, "", *notes(report)])


def _row(finding: Finding) -> tuple[str, str, str, str, str, str]:
    shown = "" if finding.unforgotten is None else f"{finding.unforgotten:.3f}"
    spread = f"{finding.mean:.3f} ± {finding.spread:.3f}"
    return finding.measure, f"{finding.value:.3f}", spread, shown, f"{finding.p:.3f}", finding.outcome


def _set(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 0 < column < 5 else cell.ljust(width)


def notes(report: AuditReport) -> list[str]:
    """What the figures stand on, a sentence each."""
    models, counts = report.models, report.counts
    said = [
        f"{counts['forget']} samples forgotten, {counts['retain']} retained, {counts['test']} held out; "
        f"{models['references']} references, each without {report.left_out:.0%} of the retained samples.",
        f"A retrained model fails at most {report.rate:.0%} of the time. Failing alone: "
        f"{report.references_failing:.1%} of the references, "
        f"{report.unforgotten_failing:.1%} of the models that never forgot.",
    ]
    if report.sums is not None:
        said.append(f"The sums differ from those of retraining by {report.sums:.1e} (relative).")
    if report.reruns:
        said.append(
            f"The stream was run again {report.reruns} times; U-LiRA and KLoM are of "
            f"{models['forgotten again']} runs that carried out the request again."
        )
    return [*said, f"{report.seconds:.1f} seconds."]
