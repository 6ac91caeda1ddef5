"""Splits a stream into retained and forgotten samples, and reconstructs a request from its receipt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from streamcl.audit.data import Flags
from streamcl.config.options.run import RunConfig
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, HoldoutPart, Sample
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.monitoring.held_out import sample_evenly, within_bytes
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.learners.cohort_adapters import CohortAdaptersOptions
from streamcl.protocols import Learner, Source

_Item = TypeVar("_Item")
SAMPLES_AT_ONCE = 64
"""Samples that go through the backbone together, which bounds the memory of their activations."""
MAX_BYTES = 512 << 20
"""Images of one kind that are held in memory, in bytes."""


class ReceiptScope:
    """The samples that a receipt names as erased from the learner: keyed hashes of their ids.

    end: the offset before which they were learned.
    """

    def __init__(self, receipt: Receipt, fingerprint: Callable[[str, str], str]) -> None:
        self.end = receipt.offset
        self._ids = frozenset(receipt.scope.ids) - frozenset(receipt.scope.unlearned)
        self._fingerprint = fingerprint

    def contains(self, offset: int, sample: Sample) -> bool:
        """Return whether the sample was erased from the learner; one without a label was never in it."""
        learned = offset < self.end and sample.label is not None
        return learned and self._fingerprint("sample", sample.id) in self._ids


def find_receipt(folder: Path, request: str | None) -> Receipt:
    """Return the newest receipt of an erasure, or of this request's.

    Raises:
        ForgettingError: there is none.
    """
    done = [receipt for _, receipt in read_receipts(folder) if receipt.outcome == "done"]
    chosen = [receipt for receipt in done if request in {None, receipt.request}]
    if not chosen:
        known = ", ".join(receipt.request for receipt in done[-5:])
        of = f" by the request {request!r:.100}" if request else ""
        raise ForgettingError(
            f"{folder} has no receipt of an erasure{of}",
            hint=f"requests with a receipt: {known}" if known else "nothing has been forgotten in this run",
        )
    return chosen[-1]


def retained_labels(folder: Path) -> dict[int, str]:
    """Return the label by offset of every sample that the run has learned and not erased.

    Raises:
        ForgettingError: the run has no lineage.
    """
    if not (folder / LINEAGE).exists():
        raise ForgettingError(f"{folder} has no {LINEAGE}, so what it has learned is not known")
    everything = ForgetRequest(offsets=(0, 2**62))
    with closing(Lineage(folder / LINEAGE)) as lineage:
        chunks = lineage.select(everything).chunks(learned=True)
        return {row.offset: str(row.label) for chunk in chunks for row in chunk}


def with_offsets(batch: Batch) -> Iterator[tuple[int, Sample]]:
    """Yield the samples of a batch with their offsets."""
    return zip(batch.offsets, batch.samples, strict=True)


def in_chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Yield the items, SAMPLES_AT_ONCE at a time."""
    for start in range(0, len(items), SAMPLES_AT_ONCE):
        yield items[start : start + SAMPLES_AT_ONCE]


def predicted_labels(learner: Learner, samples: Sequence[Sample]) -> list[str | None]:
    """Return the class that the learner predicts for each sample."""
    return [prediction.label for each in in_chunks(samples) for prediction in learner.predict(each)]


@dataclass(slots=True)
class StreamSplit:
    """The retained and the forgotten samples of a stream.

    Attributes:
        retained_labels: of the retained samples, by offset.
        gone: labels of the forgotten samples by offset.
        ids, subjects, domains: of the forgotten samples.
        forgotten, retained, held_out: samples to evaluate models on.
        retained_offsets: of `retained`.
        swapped: retained samples for the interclass-confusion test.
    """

    retained_labels: Mapping[int, str]
    gone: dict[int, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    subjects: set[str | None] = field(default_factory=set)
    domains: set[str | None] = field(default_factory=set)
    forgotten: list[Sample] = field(default_factory=list)
    retained: list[Sample] = field(default_factory=list)
    retained_offsets: list[int] = field(default_factory=list)
    held_out: Sequence[Sample] = ()
    swapped: list[Sample] = field(default_factory=list)

    def labels(
        self, left_out: frozenset[int], *, forgotten: bool, relabelled: Mapping[int, str] | None = None
    ) -> Callable[[int], str | None]:
        """Return the label by offset that a model learns, None for samples that it goes without.

        Args:
            left_out: offsets that it goes without.
            forgotten: whether it learns the forgotten samples.
            relabelled: labels in place of the samples' own.
        """
        labels = {**self.retained_labels, **(self.gone if forgotten else {}), **(relabelled or {})}
        for offset in left_out:
            del labels[offset]
        return labels.get

    def add_retained(self, offset: int, sample: Sample, *, drawn: bool, swapped: bool) -> None:
        """Append a sample to `retained` where it is drawn, and to `swapped` where its label is."""
        sample = replace(sample, label=self.retained_labels[offset])
        if drawn:
            self.retained.append(sample)
            self.retained_offsets.append(offset)
        if swapped:
            self.swapped.append(sample)

    def add_forgotten(self, offset: int, sample: Sample, *, drawn: bool) -> None:
        """Note a forgotten sample, and append it to `forgotten` where it is drawn."""
        self.gone[offset] = str(sample.label)
        self.ids.append(sample.id)
        self.subjects.add(sample.subject)
        self.domains.add(sample.domain)
        if drawn:
            self.forgotten.append(sample)

    def members(self, left_out: frozenset[int]) -> Flags:
        """Return bool [N], which of the samples in `retained` such a model has learned."""
        return np.array([offset not in left_out for offset in self.retained_offsets])


def batches_to_audit(source: Source, labels: Mapping[int, str], scope: ReceiptScope) -> Iterator[Batch]:
    """Yield the batches of a stream up to its last retained or forgotten sample."""
    end = max([*labels, scope.end - 1])
    for batch in source:
        if isinstance(batch, Batch):
            yield batch
            if batch.end > end:
                break


def split_stream(
    source: Source,
    labels: Mapping[int, str],
    scope: ReceiptScope,
    *,
    held_out: Sequence[Sample],
    swapped: Collection[int],
    every: int,
    limit: int,
    seed: int,
) -> StreamSplit:
    """Read the stream once, up to the last retained or forgotten sample.

    Args:
        source: of the run, at its beginning.
        labels: of the retained samples by offset.
        scope: the forgotten samples.
        held_out: samples to take over.
        swapped: offsets of retained samples to return in `swapped`.
        every: one in so many forgotten samples is returned.
        limit: retained samples to return at most, drawn at random.
        seed: of the draw.

    Raises:
        ForgettingError: the stream has no retained or no forgotten samples.
    """
    split = StreamSplit(labels, held_out=held_out)
    rng = np.random.default_rng(seed)
    drawn = (
        set(rng.choice(sorted(labels), min(limit, len(labels)), replace=False).tolist()) if labels else set()
    )
    for batch in batches_to_audit(source, labels, scope):
        for offset, sample in with_offsets(batch):
            if offset in labels:
                split.add_retained(offset, sample, drawn=offset in drawn, swapped=offset in swapped)
            elif scope.contains(offset, sample):
                split.add_forgotten(offset, sample, drawn=len(split.gone) % every == 0)
    split.forgotten = within_bytes(split.forgotten, MAX_BYTES)
    split.retained = within_bytes(split.retained, MAX_BYTES)
    split.retained_offsets = split.retained_offsets[: len(split.retained)]
    for name, samples in (("forgotten", split.forgotten), ("retained", split.retained)):
        if not samples:
            raise ForgettingError(f"no {name} samples are in the stream, so there is nothing to audit with")
    return split


def labelled_held_out(parts: Sequence[HoldoutPart], limit: int) -> list[Sample]:
    """Return at most `limit` of the labelled held-out samples, evenly over the parts."""
    labelled = [sample for sample in sample_evenly(parts, limit) if sample.label is not None]
    return within_bytes(labelled, MAX_BYTES)


def reconstruct_request(
    receipt: Receipt, split: StreamSplit, config: RunConfig, *, with_samples: bool
) -> ForgetRequest:
    """Return the request of a receipt, which holds no names, at the same offset and to the same method.

    Its selector follows from the forgotten samples: their class, the subject or all users, the domain or the
    range of offsets where that is a cohort, else their ids. with_samples: the request carries the samples,
    for a source that cannot fetch them.
    """
    samples = split.forgotten if with_samples else ()
    return _request(receipt, receipt.offset, samples, **_selector(receipt.kind, split, config))


def request_for_swapped(
    receipt: Receipt, split: StreamSplit, end: int, *, with_samples: bool
) -> ForgetRequest:
    """Return a request at offset `end`, to the same method, for the samples whose labels are swapped."""
    ids = [sample.id for sample in split.swapped]
    return _request(receipt, end, split.swapped if with_samples else (), ids=ids)


def _request(receipt: Receipt, offset: int, samples: Sequence[Sample], **selector: Any) -> ForgetRequest:
    method = receipt.method or "auto"
    return ForgetRequest(id="audit", offset=offset, method=method, samples=samples, **selector)


def _selector(kind: str, split: StreamSplit, config: RunConfig) -> dict[str, Any]:
    if kind == "class":
        return {"label": next(iter(split.gone.values()))}
    if kind == "subject":
        subject = next(iter(split.subjects)) if len(split.subjects) == 1 else None
        return {"all_users": True} if subject is None else {"subject": subject}
    if isinstance(config.learner, CohortAdaptersOptions):
        if config.learner.cohort_by == "domain" and len(split.domains) == 1:
            return {"domain": next(iter(split.domains))}
        if config.learner.cohort_by == "offset_range":
            return {"offsets": (min(split.gone), max(split.gone) + 1)}
    return {"ids": split.ids}
