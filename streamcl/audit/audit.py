"""The audit of one erasure from a closed-form head: from features to a report."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from streamcl.audit import label_swap as interclass
from streamcl.audit import relearning as relearn
from streamcl.audit.closed_form import Bench, Plan, shuffled
from streamcl.audit.closed_form_models import disagreement, form_of
from streamcl.audit.comparison import findings
from streamcl.audit.conclude import conclude
from streamcl.audit.data import Audited, Material, Sums
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import Finding, beside


def audit(
    material: Material,
    audited: Audited,
    *,
    relative_lambda: float,
    shrinkage: float | None = None,
    margin: float | None = None,
    widths: Sequence[int] = (),
    plan: Plan | None = None,
) -> AuditReport:
    """Judge an erasure from a closed form beside models retrained without the data.

    relative_lambda, shrinkage, margin: the head's. widths: of the features of a frozen and of an adapted
    head, side by side in the material, where the learner joins two; then the margin is the frozen one's.
    Raises ForgettingError where the audited sums cannot be solved.
    """
    began = time.perf_counter()
    plan = plan or Plan()
    form = form_of(material, widths, relative_lambda=relative_lambda, shrinkage=shrinkage, margin=margin)
    bench = Bench(material, plan, form)
    groups = bench.groups(audited)
    names = ("audited", "references", "unforgotten")
    return conclude(
        groups,
        findings(groups, groups.audited, plan.deals),
        _taught(bench, audited.statistics),
        plan,
        began=began,
        counts=material.counts,
        models={name: len(getattr(groups, name)) for name in names},
        sums=None if audited.statistics is None else disagreement(audited.statistics, bench.retained),
    )


def _taught(bench: Bench, known: Sums | None) -> list[Finding]:
    """The measures that teach models something and look what comes of it; they need the audited sums."""
    if known is None:
        return []
    return [*_interclass(bench, known), *_relearned(bench, known)]


def _interclass(bench: Bench, known: Sums) -> list[Finding]:
    material, form = bench.material, bench.form
    model = form.solve(bench.retained)
    swap = interclass.most_confused(model, material.retain, material.test, bench.plan.seed)
    if swap is None:
        return []
    before, after = interclass.after_forgetting(form, bench.few(known, swap.rows), swap)
    models = (form.solve(each) for each in bench.few(bench.retained, swap.rows))
    references = np.array([interclass.confusion(each, swap) for each in models])
    step = 1 / len(swap.check)
    return [beside("interclass confusion", after, references, before, step=step, paper=interclass.PAPER)]


def _relearned(bench: Bench, known: Sums) -> list[Finding]:
    form, material = bench.form, bench.material
    check = material.forget if material.unseen is None else material.unseen
    if not len(check):
        return []
    lessons = shuffled(bench.material.forget, bench.plan.seed)
    target = relearn.REGAINED * relearn.accuracy_after(form, bench.retained, lessons, check)
    none = torch.zeros(0, dtype=torch.int64)
    times = (
        relearn.relearn_times(form, bench.few(sums, none), lessons, check, target)
        for sums in (known, bench.retained, bench.unforgotten_sums)
    )
    return [beside("relearn time, log2 samples", *times, step=1.0, paper=relearn.PAPER)]
