"""Audits an erasure of a run directory: its stream is read again and split into retained and forgotten."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from streamcl.audit.closed_form import audit
from streamcl.audit.data import AuditConfig, AuditData, Examples, ModelStatistics
from streamcl.audit.label_swap import swap_labels
from streamcl.audit.learner_heads import ClosedFormHeads, WarmUpReplay, closed_form_heads
from streamcl.audit.reconstruction import MAX_PICTURES, PictureEvaluator, ReconstructionAudit
from streamcl.audit.report import AuditReport
from streamcl.audit.retraining import Retraining, remove_leftovers
from streamcl.audit.retraining_audit import audit_by_retraining
from streamcl.audit.stream_split import (
    ReceiptScope,
    batches_to_audit,
    find_receipt,
    in_chunks,
    labelled_held_out,
    reconstruct_request,
    request_for_swapped,
    retained_labels,
    split_stream,
    with_offsets,
)
from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import ForgettingError
from streamcl.events import HoldoutPart, Sample
from streamcl.factory.backbone import SharedBackbones, build_compute
from streamcl.factory.parts import build_learner
from streamcl.factory.source import build_source
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.nn.backbone import Backbone
from streamcl.protocols import Learner, ProbabilisticLearner, Source, fetch_of
from streamcl.runs.learner import LoadedRun, load_run
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage.plain_state import state_hash

logger = logging.getLogger(__name__)

MAX_RETRAINING_SAMPLES = 200
"""Samples of each kind on which retrained models are evaluated: each needs a pass through the backbone."""


def audit_run(
    folder: Path,
    *,
    request: str | None = None,
    config: AuditConfig | None = None,
    retrain: bool = False,
) -> AuditReport:
    """Audit one erasure of a run.

    The forgotten samples are found by the receipt's keyed hashes in the stream, which is read again from
    its beginning; nothing of it is written. A learner with closed-form heads is audited by their statistics:
    for ridge_lora with its adapted branch both heads as one, beside references that share the adapters,
    for which the warm-up is learned again. Any other learner is audited beside further runs of the stream.

    Args:
        folder: of the run.
        request: id of the erasure; the last one by default.
        config: settings of the audit.
        retrain: run the stream again for a learner with closed-form heads, too.

    Raises:
        ForgettingError: the run has no such receipt.
        SourceError: the stream cannot be read.
    """
    config = config or AuditConfig()
    receipt = find_receipt(folder, request)
    shared = SharedBackbones()
    loaded = load_run(folder, vit=shared.backbone)
    learner, run_config = loaded.learner, loaded.config
    heads = None if retrain else closed_form_heads(learner)
    before = state_hash(learner.state_dict())
    case = _Case(folder, receipt, loaded, config)
    backbone = loaded.backbone
    if heads is None:
        report = _by_retraining(case, learner, backbone)
    else:
        again = build_learner(run_config, backbone, build_compute(run_config))
        report = _by_statistics(case, heads, WarmUpReplay(heads, again) if len(heads.heads) > 1 else None)
        report = _with_pictures(case, learner, report)
    expected = receipt.scope.learned
    if report.counts["forget"] != expected:
        logger.warning(
            "%d of %d forgotten samples were found in the stream", report.counts["forget"], expected
        )
    return replace(report, request=receipt.request, learner=before)


@dataclass(frozen=True, slots=True)
class _Case:
    """The subject and the settings of one audit."""

    folder: Path
    receipt: Receipt
    run: LoadedRun
    config: AuditConfig

    @contextmanager
    def stream(self) -> Iterator[tuple[SourceWrapper, ReceiptScope]]:
        """The run's stream at its beginning, and which of its samples were forgotten.

        Raise ForgettingError where the audit lacks something, before anything is computed.
        """
        with closing(build_source(self.run.config)) as source, Ledger(self.folder / LEDGER) as ledger:
            if not source.replayable:
                raise ForgettingError("the stream cannot be read again, so there is nothing to audit with")
            if count := self.run.appended:
                raise ForgettingError(
                    f"{count} records were learned by partial_fit and are not in the stream",
                    hint="an audit compares models that learn the same stream again",
                )
            if not any(len(part.samples) for part in self.held_out(source)):
                raise ForgettingError(
                    "there are no held-out samples, which an audit compares models on",
                    hint="the source has some, or evaluate.hold_out takes them from the stream, once 20 "
                    "samples of a class have been learned",
                )
            yield source, ReceiptScope(self.receipt, ledger.fingerprint)

    def held_out(self, source: Source) -> tuple[HoldoutPart, ...]:
        """Return the held-out samples of the source, or those that the run held out."""
        return source.info.holdout or self.run.held_out


def _by_statistics(case: _Case, heads: ClosedFormHeads, replay: WarmUpReplay | None) -> AuditReport:
    with case.stream() as (source, scope):
        retained, forgotten = _read_features(source, heads, retained_labels(case.folder), scope, replay)
        held_out = _FeatureList()
        labelled = [each for part in case.held_out(source) for each in part.samples if each.label is not None]
        held_out.add(heads, labelled)
    names = dict.fromkeys([*heads.learner.classes, *retained.labels, *forgotten.labels])
    columns = {name: i for i, name in enumerate(names)}  # those of erased classes come last
    base = None if replay is None else replay.finish().statistics(columns)
    if replay is not None and (difference := replay.difference()):
        logger.warning("features after the replayed warm-up differ by %.0e from the run's", difference)
    data = _audit_data((retained, forgotten, held_out), columns, case.receipt.kind, base)
    return audit(data, heads.statistics(columns), heads.heads, case.config)


def _with_pictures(case: _Case, learner: Learner, report: AuditReport) -> AuditReport:
    """Return the report with what the learner gives back of images, where it can fill in any."""
    able = capabilities_of(learner)
    if able.reconstruction is None or able.features is None or not isinstance(learner, ProbabilisticLearner):
        return report
    evaluator = PictureEvaluator(able.reconstruction, able.features, learner)
    audit_of_pictures = ReconstructionAudit(able.reconstruction, evaluator, case.config)
    with case.stream() as (source, scope):
        every = labelled_held_out(case.held_out(source), 4 * MAX_PICTURES)
        held_out = [each for each in every if each.label in learner.classes][:MAX_PICTURES]
        audit_of_pictures.read(source, retained_labels(case.folder), scope, held_out)
    return audit_of_pictures.report(report)


def _by_retraining(case: _Case, learner: Learner, backbone: Backbone) -> AuditReport:
    remove_leftovers(case.folder)
    kept, receipt, seed = retained_labels(case.folder), case.receipt, case.config.seed
    limit = min(case.config.max_samples, MAX_RETRAINING_SAMPLES)
    with case.stream() as (source, scope):
        held_out = labelled_held_out(case.held_out(source), 2 * limit)
        swap = swap_labels(learner, held_out, kept, seed)
        with_samples = fetch_of(source) is None  # then the request must bring all of its samples
        split = split_stream(
            *(source, kept, scope),
            held_out=held_out,
            swapped={} if swap is None else swap.wrong,
            every=1 if with_samples else max(1, -(-(receipt.scope.learned or 0) // limit)),
            limit=limit,
            seed=seed,
        )
    retraining = Retraining(case.run.config, case.folder, backbone, max([*kept, scope.end - 1]) + 1)
    with_request = None
    if swap is not None:
        with_request = swap, request_for_swapped(receipt, split, retraining.end, with_samples=with_samples)
    request = reconstruct_request(receipt, split, case.run.config, with_samples=with_samples)
    return audit_by_retraining(learner, split, retraining, request, swap=with_request, config=case.config)


@dataclass(slots=True)
class _FeatureList:
    """Features and labels, collected a portion at a time."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, heads: ClosedFormHeads, samples: Sequence[Sample]) -> None:
        """Append labelled samples."""
        for portion in in_chunks(samples):
            self.features.append(heads.features(portion))
            self.labels += [str(sample.label) for sample in portion]

    def examples(self, columns: Mapping[str, int], wanted: Container[str]) -> Examples:
        """Return the examples with wanted labels."""
        rows = [i for i, label in enumerate(self.labels) if label in wanted]
        every = torch.cat(self.features) if self.features else torch.zeros(0, 1)
        return Examples(every[rows], torch.tensor([columns[self.labels[i]] for i in rows]).long())


def _read_features(
    source: Source,
    heads: ClosedFormHeads,
    kept: Mapping[int, str],
    scope: ReceiptScope,
    replay: WarmUpReplay | None,
) -> tuple[_FeatureList, _FeatureList]:
    """The retained and the forgotten samples up to the last; a warm-up goes to its replay instead."""
    retained, forgotten = _FeatureList(), _FeatureList()
    for batch in batches_to_audit(source, kept, scope):
        if replay is not None and heads.in_warm_up(batch):
            replay.learn(batch, kept)
            continue
        pairs = list(with_offsets(batch))
        retained.add(heads, [replace(each, label=kept[offset]) for offset, each in pairs if offset in kept])
        others = [(offset, each) for offset, each in pairs if offset not in kept]
        forgotten.add(heads, [each for offset, each in others if scope.contains(offset, each)])
    return retained, forgotten


def _audit_data(
    found: tuple[_FeatureList, _FeatureList, _FeatureList],
    columns: Mapping[str, int],
    kind: str,
    base: ModelStatistics | None,
) -> AuditData:
    retained, forgotten, held_out = found
    if not forgotten.labels:
        raise ForgettingError("none of the forgotten samples is in the stream any more")
    erased = forgotten.labels[0] if kind == "class" else None
    in_base = [] if base is None else [name for name, i in columns.items() if base.heads[0].counts[i]]
    known = {*retained.labels, *in_base} - {erased}
    return AuditData(
        retained.examples(columns, columns),
        forgotten.examples(columns, columns),
        held_out.examples(columns, known),
        len(columns),
        erased_class=None if erased is None else columns[erased],
        erased_test=None if erased is None else held_out.examples(columns, {erased}),
        base=base,
    )
