"""From what models answered to the report: the same for references of sums and of further runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from streamcl.audit.answers import Groups
from streamcl.audit.closed_form import Plan
from streamcl.audit.comparison import by_memorisation, failing, findings
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import Finding, judged


def conclude(
    groups: Groups,
    answered: Sequence[Finding],
    taught: Sequence[Finding],
    plan: Plan,
    *,
    began: float,
    **told: Any,
) -> AuditReport:
    """Judge what was found, together, and beside it what models that never forgot come to.

    answered: measures of answers, of which those models have the same. taught: measures that taught models
    something first. began: `time.perf_counter()` when the audit did. told: the report's other fields.
    """
    control = judged(findings(groups, groups.unforgotten, plan.deals), plan.rate)
    shown = {each.measure: each.value for each in control}
    found = [replace(each, unforgotten=shown[each.measure]) for each in answered]
    return AuditReport(
        kind="samples" if groups.gone is None else "class",
        left_out=plan.left_out,
        rate=plan.rate,
        references_failing=failing(groups, groups.references, plan.rate),
        unforgotten_failing=failing(groups, groups.unforgotten, plan.rate),
        unforgotten_seen=not all(finding.good for finding in control),
        findings=judged([*found, *taught], plan.rate),
        by_memorisation=by_memorisation(groups),
        seconds=time.perf_counter() - began,
        **told,
    )
