"""The audit of a learner that keeps no sums: its references are runs of the same stream without the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from streamcl.audit import label_swap as interclass
from streamcl.audit import relearning as relearn
from streamcl.audit.answers import Group, Groups
from streamcl.audit.closed_form import FEW, Plan
from streamcl.audit.comparison import findings, of_distributions
from streamcl.audit.conclude import conclude
from streamcl.audit.mixup import Mixup
from streamcl.audit.questions import Answer, Questions
from streamcl.audit.report import AuditReport
from streamcl.audit.retraining import Reruns
from streamcl.audit.significance import Finding, beside
from streamcl.audit.stream_split import SortedStream
from streamcl.audit.trials import Trials
from streamcl.events import ForgetRequest
from streamcl.protocols import Learner

logger = logging.getLogger(__name__)


def audit_by_reruns(
    learner: Learner,
    stream: SortedStream,
    reruns: Reruns,
    request: ForgetRequest,
    *,
    mixup: tuple[Mixup, ForgetRequest] | None,
    plan: Plan,
) -> AuditReport:
    """Judge an erasure from any learner beside models of runs that never saw the data.

    Membership of distributions (U-LiRA, KLoM) is judged on models that learned the data and were made to
    forget it as the run was, in the same place of the stream; every other measure on the run's own model.
    mixup: what interclass confusion is tested with, and the request that forgets it.
    """
    began = time.perf_counter()
    questions = Questions(stream, learner.classes, request.kind, plan.seed)
    most = 1 + (3 if mixup is None else 5) * plan.reruns
    trials = Trials(stream, reruns, questions, plan, most=most)
    probes = questions.probes()

    def group(found: Sequence[Answer], left_out: Sequence[frozenset[int]], *, mask: bool = False) -> Group:
        member = np.stack([stream.members(each) for each in left_out])
        hidden = probes.gone if mask else None
        return probes.ask((_scorer(answer.logits, hidden) for answer in found), member)

    retrained = trials.retrained()
    known, known_without = trials.group("without the data", forgotten=False)
    kept, kept_without = trials.group("with the data", forgotten=True)
    again, again_without = trials.group("made to forget it", forgotten=True, request=request)
    own = questions.ask(learner)
    everything = [frozenset[int]()]
    groups = Groups(
        group([own], everything),
        group(known, known_without),
        group(kept, kept_without, mask=True),
        group([retrained], everything),
        probes.gone,
    )
    answered = findings(groups, groups.audited, plan.deals)
    if len(again) >= FEW // 2:
        answered += of_distributions(groups, group(again, again_without), plan.deals)
    else:
        logger.warning(
            "only %d of %d runs forgot as this one did: no U-LiRA, no KLoM", len(again), plan.reruns
        )
    taught = [_relearned(own, known, kept, retrained)] if questions.relearned else []
    if mixup is not None:
        taught += _confused(trials, *mixup)
    return conclude(
        groups,
        answered,
        taught,
        plan,
        began=began,
        counts={"retain": len(stream.kept), "forget": len(stream.gone), "test": questions.test},
        models={
            "audited": 1,
            "references": len(known),
            "unforgotten": len(kept),
            "forgotten again": len(again),
        },
        reruns=trials.made,
    )


def _scorer(logits: Tensor, hidden: int | None) -> Callable[[Tensor], Tensor]:
    if hidden is not None:
        logits = logits.index_fill(1, torch.tensor([hidden]), -torch.inf)
    return lambda places: logits[places[:, 0]]


def _relearned(own: Answer, known: Sequence[Answer], kept: Sequence[Answer], retrained: Answer) -> Finding:
    target = relearn.REGAINED * float(retrained.regained[-1])
    times = (
        np.array([relearn.doublings_until(answer.regained, target) for answer in group])
        for group in ([own], known, kept)
    )
    audited, references, unforgotten = times
    centre = relearn.doublings_until(retrained.regained, target)
    return beside(
        *("relearn time, log2 samples", audited, references, unforgotten),
        step=1.0,
        centre=centre,
        paper=relearn.PAPER,
    )


def _confused(trials: Trials, mixup: Mixup, request: ForgetRequest) -> list[Finding]:
    never, before, after = map(np.array, trials.mixed_up(mixup, request))
    if len(after) < 2:
        logger.warning("the method does not forget single samples: no interclass confusion")
        return []
    step = 1 / len(mixup.check)
    return [beside("interclass confusion", after, never, before, step=step, paper=interclass.PAPER)]
