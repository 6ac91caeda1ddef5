"""From a run directory to an audit's material: its stream is read again, each sample put where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamcl.audit.audit import audit
from streamcl.audit.bench import Plan
from streamcl.audit.closed_forms import Beginning, ClosedForms, closed_forms
from streamcl.audit.material import Audited, Examples, Material, Sums
from streamcl.audit.report import AuditReport
from streamcl.build import build_source
from streamcl.config import RunConfig
from streamcl.config_models.closed_form import RidgeOptions
from streamcl.config_models.hybrid import Hybrid
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, ForgetRequest, Sample, Selector
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.receipt import read_chain
from streamcl.ledger import LEDGER, Ledger
from streamcl.protocols import Source
from streamcl.runs import load_learner
from streamcl.state import state_hash

Tell = Callable[[str], None]
Item = TypeVar("Item")
PORTION = 64  # samples that go through the backbone together


def audit_run(
    folder: Path, *, request: str | None = None, plan: Plan | None = None, tell: Tell = print
) -> AuditReport:
    """Audit one erasure of a run (the last one where none is named) by its closed-form heads.

    The forgotten samples are found by the receipt's salted hashes in the stream, which is read again from
    its beginning; nothing of it is written. Where a hybrid kept its adapted branch, both heads as one are
    audited: references share the settled adapters, and the beginning, in which these moved, is learned again.
    Raises ForgettingError where there is no such receipt or the
    learner has no closed-form head, SourceError where the stream cannot be read.
    """
    receipt = _receipt(folder, request)
    learner, config = load_learner(folder, report=tell)
    forms = closed_forms(learner)
    options = _ridge_options(config)
    beginning = None if forms.hybrid is None else Beginning(forms.hybrid, config)
    with closing(build_source(config)) as source:
        if not source.replayable:
            raise ForgettingError("the stream cannot be read again, so there is nothing to audit with")
        with Ledger(folder / LEDGER) as ledger:
            scope = _Scope(receipt, ledger.fingerprint)
            retained, forgotten = _sort_out(source, forms, _kept(folder), scope, beginning)
        held = _labelled([sample for part in source.info.holdout for sample in part.samples], forms)
    columns = _columns(forms.exact.classes, retained, forgotten)
    base = None if beginning is None else beginning.sums(columns)
    if beginning is not None and (apart := beginning.difference()):
        tell(f"the beginning learned again gives adapters that differ by {apart:.0e} from the run's")
    material = _material((retained, forgotten, held), columns, receipt["kind"], base)
    expected = receipt["scope"]["learned"]
    if len(material.forget) != expected:
        tell(f"{len(material.forget)} of {expected} forgotten samples were found in the stream")
    return replace(
        audit(
            material,
            Audited(statistics=forms.sums(columns)),
            widths=forms.widths,
            relative_lambda=options.relative_lambda,
            shrinkage=options.shrinkage,
            plan=plan,
        ),
        request=receipt["request"],
        learner=state_hash(learner.state_dict()),
    )


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


class _Scope:
    """What a receipt says was forgotten: samples by salted hashes of their ids, up to an offset."""

    def __init__(self, receipt: Mapping[str, Any], fingerprint: Callable[[str, str], str]) -> None:
        self.end = int(receipt["offset"])
        self._ids = frozenset(receipt["scope"]["ids"])
        self._fingerprint = fingerprint

    def holds(self, offset: int, sample: Sample) -> bool:
        """Whether the sample was forgotten then; one without a label was never learned."""
        known = offset < self.end and sample.label is not None
        return known and self._fingerprint("sample", sample.id) in self._ids


def _receipt(folder: Path, request: str | None) -> dict[str, Any]:
    done = [content for _, content in read_chain(folder) if content["outcome"] == "done"]
    chosen = [content for content in done if request in {None, content["request"]}]
    if not chosen:
        known = ", ".join(content["request"] for content in done[-5:])
        of = f" by the request {request!r:.100}" if request else ""
        raise ForgettingError(
            f"{folder} has no receipt of an erasure{of}",
            hint=f"carried out: {known}" if known else "nothing has been forgotten in this run",
        )
    return chosen[-1]


def _ridge_options(config: RunConfig) -> RidgeOptions:
    options = config.learner.ridge if isinstance(config.learner, Hybrid) else config.learner
    if not isinstance(options, RidgeOptions):
        raise ConfigError(f"learner {config.learner.name} has no closed-form head")
    return options


def _kept(folder: Path) -> dict[int, str]:
    """Which offsets the model has learned and not forgotten, with the label that each was learned with."""
    if not (folder / LINEAGE).exists():
        raise ForgettingError(f"{folder} has no {LINEAGE}, so what it has learned is not known")
    everything = ForgetRequest("audit", "samples", 0, selector=Selector(offsets=(0, 2**62)))
    with closing(Lineage(folder / LINEAGE)) as lineage:
        chunks = lineage.chunks(everything, learned=True)
        return {trace.offset: str(trace.label) for chunk in chunks for trace in chunk}


def _sort_out(
    source: Source,
    forms: ClosedForms,
    kept: Mapping[int, str],
    scope: _Scope,
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
    batch: Batch, forms: ClosedForms, kept: Mapping[int, str], scope: _Scope, into: tuple[_Found, _Found]
) -> None:
    for pairs in _portions(list(_placed(batch))):
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


def _placed(batch: Batch) -> Iterator[tuple[int, Sample]]:
    gone = {refused.offset for refused in batch.refused}
    offsets = (offset for offset in range(batch.offset, batch.end) if offset not in gone)
    return zip(offsets, batch.samples, strict=True)


def _portions(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), PORTION):
        yield items[start : start + PORTION]


def _labelled(samples: Sequence[Sample], forms: ClosedForms) -> _Found:
    found = _Found()
    for portion in _portions([sample for sample in samples if sample.label is not None]):
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
