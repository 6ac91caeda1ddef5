"""From a run directory to an audit's material: its stream is read again, each sample put where it belongs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamcl.audit.audit import audit
from streamcl.audit.closed_form import Plan
from streamcl.audit.data import Audited, Examples, Material, Sums
from streamcl.audit.learner_heads import Beginning, ClosedForms, closed_forms
from streamcl.audit.mixup import most_confused
from streamcl.audit.reconstruct_request import asked_again, noted_again
from streamcl.audit.report import AuditReport
from streamcl.audit.retraining import Reruns, sweep_killed
from streamcl.audit.retraining_audit import audit_by_reruns
from streamcl.audit.scope import Scope, kept_by, placed, portions, receipt_of
from streamcl.audit.stream_split import held_out, sort_stream
from streamcl.config.options.closed_form import RidgeOptions
from streamcl.config.options.hybrid import Hybrid
from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import SharedBackbones
from streamcl.factory.compute import build_compute
from streamcl.factory.source import build_source
from streamcl.forgetting.ledger import LEDGER, Ledger
from streamcl.nn.backbone import Backbone
from streamcl.protocols import Learner, Source, SourceWrapper, fetch_of
from streamcl.runs.load import load_learner
from streamcl.storage.plain_state import state_hash

logger = logging.getLogger(__name__)

ASKED_ABOUT = 200
"""Samples of each kind about which models are asked that are runs of the stream."""


def audit_run(
    folder: Path,
    *,
    request: str | None = None,
    plan: Plan | None = None,
    rerun: bool = False,
) -> AuditReport:
    """Audit one erasure of a run, the last one where none is named.

    The forgotten samples are found by the receipt's salted hashes in the stream, which is read again from
    its beginning; nothing of it stays written. A learner with a closed-form head is audited by its sums:
    where a hybrid kept its adapted branch, both heads as one, with references that share the settled
    adapters, for which the beginning, in which these moved, is learned again. Any other learner, or any at
    all with `rerun`, is audited beside further runs of the stream. Raises ForgettingError where there is no
    such receipt, SourceError where the stream cannot be read.
    """
    plan = plan or Plan()
    receipt = receipt_of(folder, request)
    shared = SharedBackbones()
    learner, config = load_learner(folder, vit=shared.backbone)
    forms = None if rerun else closed_forms(learner)
    before = state_hash(learner.state_dict())
    case = _Case(folder, receipt, config, plan)
    if forms is not None:
        report = _by_sums(case, forms)
    else:
        report = _by_reruns(case, learner, shared.backbone(config, build_compute(config)))
    expected = receipt["scope"]["learned"]
    if report.counts["forget"] != expected:
        logger.warning(
            "%d of %d forgotten samples were found in the stream", report.counts["forget"], expected
        )
    return replace(report, request=receipt["request"], learner=before)


@dataclass(frozen=True, slots=True)
class _Case:
    """What one audit is of."""

    folder: Path
    receipt: Mapping[str, Any]
    config: RunConfig
    plan: Plan

    @contextmanager
    def stream(self) -> Iterator[tuple[SourceWrapper, Scope]]:
        """The run's stream from its beginning, and what of it was forgotten."""
        with closing(build_source(self.config)) as source, Ledger(self.folder / LEDGER) as ledger:
            if not source.replayable:
                raise ForgettingError("the stream cannot be read again, so there is nothing to audit with")
            yield source, Scope(self.receipt, ledger.fingerprint)


def _by_sums(case: _Case, forms: ClosedForms) -> AuditReport:
    options = _ridge_options(case.config)
    beginning = None if forms.hybrid is None else Beginning(forms.hybrid, case.config)
    with case.stream() as (source, scope):
        retained, forgotten = _sort_out(source, forms, kept_by(case.folder), scope, beginning)
        held = _labelled([sample for part in source.info.holdout for sample in part.samples], forms)
    columns = _columns(forms.exact.classes, retained, forgotten)
    base = None if beginning is None else beginning.sums(columns)
    if beginning is not None and (apart := beginning.difference()):
        logger.warning("the beginning learned again gives adapters that differ by %.0e from the run's", apart)
    return audit(
        _material((retained, forgotten, held), columns, case.receipt["kind"], base),
        Audited(statistics=forms.sums(columns)),
        widths=forms.widths,
        relative_lambda=options.relative_lambda,
        shrinkage=options.shrinkage,
        margin=options.margin,
        plan=case.plan,
    )


def _by_reruns(case: _Case, learner: Learner, backbone: Backbone) -> AuditReport:
    sweep_killed(case.folder)
    kept, plan = kept_by(case.folder), case.plan
    most = min(plan.looked_at, ASKED_ABOUT)
    with case.stream() as (source, scope):
        held = held_out(source, 2 * most)
        mixup = most_confused(learner, held, kept, plan.seed)
        noted = {} if mixup is None else mixup.wrong
        carried = fetch_of(source) is None  # then the request must bring all of its samples
        every = 1 if carried else max(1, -(-int(case.receipt["scope"]["learned"]) // most))
        found = sort_stream(
            *(source, kept, scope), held=held, noted=noted, every=every, most=most, seed=plan.seed
        )
    request = asked_again(case.receipt, found, case.config, carried=carried)
    runs = Reruns(case.config, case.folder, backbone, max([*kept, scope.end - 1]) + 1)
    swapped = None
    if mixup is not None:
        swapped = mixup, noted_again(case.receipt, found, runs.end, carried=carried)
    return audit_by_reruns(learner, found, runs, request, mixup=swapped, plan=plan)


@dataclass(slots=True)
class _Found:
    """Features and labels, a few samples at a time."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, features: Tensor, labels: Sequence[str]) -> None:
        self.features.append(features.cpu())
        self.labels += labels

    def where(self, wanted: Callable[[str], bool], columns: Mapping[str, int]) -> Examples:
        """Those whose label is wanted."""
        rows = [i for i, label in enumerate(self.labels) if wanted(label)]
        every = torch.cat(self.features) if self.features else torch.zeros(0, 1)
        return Examples(every[rows], torch.tensor([columns[self.labels[i]] for i in rows]).long())


def _ridge_options(config: RunConfig) -> RidgeOptions:
    options = config.learner.ridge if isinstance(config.learner, Hybrid) else config.learner
    if not isinstance(options, RidgeOptions):
        raise ConfigError(f"learner {config.learner.name} has no closed-form head")
    return options


def _sort_out(
    source: Source,
    forms: ClosedForms,
    kept: Mapping[int, str],
    scope: Scope,
    beginning: Beginning | None,
) -> tuple[_Found, _Found]:
    """What was retained and what was forgotten, from the stream's beginning to where either ends.

    What a beginning is needed for goes there, and is in neither.
    """
    retained, forgotten = _Found(), _Found()
    end = max([*kept, scope.end - 1])
    for batch in source:
        if not isinstance(batch, Batch):
            continue
        if beginning is not None and batch.offset < forms.moved_until:
            beginning.learn(batch, kept)
        else:
            _sort(batch, forms, kept, scope, (retained, forgotten))
        if batch.end > end:
            break
    return retained, forgotten


def _sort(
    batch: Batch, forms: ClosedForms, kept: Mapping[int, str], scope: Scope, into: tuple[_Found, _Found]
) -> None:
    for pairs in portions(list(placed(batch))):
        stays = [(sample, kept[offset]) for offset, sample in pairs if offset in kept]
        goes = [
            (sample, str(sample.label))
            for offset, sample in pairs
            if offset not in kept and scope.holds(offset, sample)
        ]
        for found, chosen in zip(into, (stays, goes), strict=True):
            if chosen:
                features = forms.features([sample for sample, _ in chosen])
                found.add(features, [label for _, label in chosen])


def _labelled(samples: Sequence[Sample], forms: ClosedForms) -> _Found:
    found = _Found()
    for portion in portions([sample for sample in samples if sample.label is not None]):
        found.add(forms.features(portion), [str(sample.label) for sample in portion])
    return found


def _columns(classes: Sequence[str], *parts: _Found) -> dict[str, int]:
    """The learner's columns, then those of classes that are gone."""
    names = dict.fromkeys([*classes, *(label for part in parts for label in part.labels)])
    return {name: i for i, name in enumerate(names)}


def _material(
    found: tuple[_Found, _Found, _Found], columns: Mapping[str, int], kind: str, base: Sums | None
) -> Material:
    retained, forgotten, held = found
    if not forgotten.labels:
        raise ForgettingError("none of the forgotten samples is in the stream any more")
    gone = forgotten.labels[0] if kind == "class" else None
    below = base[0] if isinstance(base, tuple) else base
    in_base = [] if below is None else [name for name, i in columns.items() if below.counts[i]]
    known = {*retained.labels, *in_base} - {gone}
    return Material(
        retained.where(lambda _: True, columns),
        forgotten.where(lambda _: True, columns),
        held.where(lambda label: label in known, columns),
        len(columns),
        gone=None if gone is None else columns[gone],
        unseen=None if gone is None else held.where(lambda label: label == gone, columns),
        base=base,
    )
