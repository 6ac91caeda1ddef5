"""Labels that come after their records: each is learned with the prediction that was made at first sight."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from streamcl.errors import ForgettingError, SourceError
from streamcl.events import Batch, Prediction, Sample
from streamcl.memory.holdout_store import HoldoutStore
from streamcl.memory.waiting_samples import WaitingSample, WaitingSamples
from streamcl.processor.event_log import EventLog
from streamcl.processor.merged_batch import MergedBatch
from streamcl.processor.ports import LabelCorrections
from streamcl.protocols import BatchRecord, State
from streamcl.requests.label import Label

logger = logging.getLogger(__name__)

LabelOutcome: TypeAlias = Literal[
    "in_time", "repeated", "corrected", "withdrawn", "unlabelled", "late", "refused", "expired"
]
"""Of a label; "unlabelled" is a withdrawal of none, "expired" a record that left before its label came."""

LATE = "no record with this id waits for its label: it has left the store, or none has come"
CORRECTED = "the sample is taken out under its old label and learned under the new one"
WITHDRAWN = "the sample has no label any more: where it was learned it is taken out; it waits for a label"


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """A batch with the labels that came with it, and with the earlier samples that they are of.

    predictions: of earlier samples, made at first sight, by offset. completed: offsets of samples of the
    batch itself whose labels came with it. corrected: offsets of samples that were learned under another
    label, which was corrected or withdrawn; their predictions were scored with the first.
    """

    batch: Batch
    predictions: Mapping[int, Prediction] = field(default_factory=dict)
    completed: frozenset[int] = frozenset()
    corrected: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Assignment:
    """What the labels of a batch say. own: the batch's samples, by id, with the labels that they came with.

    labels: those to learn in this step, by id, of own samples and of those that wait. withdrawn: own samples
    without the labels that they came with. corrections: labels of samples that were learned under others;
    None: withdrawn. late: how many labels are of no sample that is known.
    """

    own: dict[str, str | None]
    labels: dict[str, str] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    corrections: dict[str, str | None] = field(default_factory=dict)
    late: int = 0

    def label_of(self, sample: Sample) -> str | None:
        """Return the label that an own sample has now."""
        return self.labels.get(sample.id, None if sample.id in self.withdrawn else sample.label)


class LateLabels:
    """Gives records without a label theirs when it comes, and counts what becomes of every label.

    Samples wait in a bounded store. A label in time brings its sample into the step of the batch that it
    comes with. One of a sample that was learned under another label is a correction, where the learner can
    take the sample out exactly. A withdrawal takes it out too, and lets it wait for a label. The same label
    again changes nothing; all others are refused, and logged.

    Args:
        waiting: the store; None where labels come with their records only.
        corrections: takes samples out of the learner; None where the run cannot.
        log: of the run.
        held_out: samples that are held out; a label of one of them is corrected or withdrawn there.
    """

    def __init__(
        self,
        waiting: WaitingSamples | None,
        corrections: LabelCorrections | None,
        log: EventLog,
        held_out: HoldoutStore,
    ) -> None:
        self.counts = Counter[str]()
        self._waiting, self._corrections, self._log = waiting, corrections, log
        self._held_out = held_out

    def separated(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the batch; where it is not to be learned, after the labels of earlier records, which are."""
        if not (batch.predict_only and batch.labels):
            return (batch,)
        own = {sample.id for sample in batch.samples} | {rejected.id for rejected in batch.rejected}
        others = tuple(label for label in batch.labels if label.id not in own)
        if not others:
            return (batch,)
        left = tuple(label for label in batch.labels if label.id in own)
        return Batch(batch.offset, (), labels=others, time=batch.time), replace(batch, labels=left)

    def attach(self, batch: Batch) -> LabelledBatch:
        """Return the batch with what its labels make known. Raise SourceError where the run takes none."""
        if self._waiting is None:
            if batch.labels:
                raise SourceError(
                    f"the source brings labels apart from their records, at offset {batch.end} the first",
                    hint="a block labels: in the configuration lets records wait for them",
                )
            return LabelledBatch(batch)
        self._left(self._waiting.expire(batch.time), "have waited too long for their labels")
        if not batch.labels:
            return LabelledBatch(batch)
        found = _Assignment({sample.id: sample.label for sample in batch.samples})
        for label in batch.labels:
            self._assign(label, found, self._waiting)
        self._note_late(found.late)
        waited = [entry for name in found.labels if (entry := self._waiting.take(name)) is not None]
        return _labelled_batch(batch, found, waited, self._taken_out(found.corrections))

    def after_batch(self, record: BatchRecord) -> None:
        """Let unlabelled samples wait, with the predictions that were made of them first."""
        batch = record.batch
        if self._waiting is None or batch.predict_only:
            return
        for sample, made in zip(batch.samples, record.predictions, strict=True):
            if sample.label is None:
                facts = made.stability, made.novelty, made.work
                prediction = Prediction(made.predicted, made.confidence, *facts)
                scored = made.offset in record.corrected
                self._waiting.put(WaitingSample(sample, made.offset, prediction, batch.time, scored))
        self._left(self._waiting.evict(), "had no room to wait for their labels")

    def summary(self) -> dict[str, int]:
        """Return the counts, and how many samples wait; nothing where labels come with their records only."""
        return {} if self._waiting is None else {**self.counts, "waiting": len(self._waiting)}

    def state_dict(self) -> State:
        """Return the samples that wait, and the counts; nothing where labels come with their records only."""
        if self._waiting is None:
            return {}
        return {"counts": dict(self.counts), "waiting": self._waiting.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the object that returned `state`; an empty one has seen nothing."""
        self.counts = Counter(state.get("counts", {}))
        if self._waiting is not None:
            self._waiting.load_state_dict(state.get("waiting", {}))

    def _assign(self, label: Label, found: _Assignment, waiting: WaitingSamples) -> None:
        """Find the record of one label, and note what is to be done."""
        name = label.id
        if label.fault is not None:
            self._note("refused", label, label.fault)
        elif label.label is None:
            self._withdraw(label, found, waiting)
        elif name in found.labels or found.own.get(name) is not None:
            before = found.labels.get(name) or found.own[name]
            self._note("repeated" if before == label.label else "corrected", label, CORRECTED)
            found.labels[name] = label.label
        elif name in found.own or name in waiting:
            self._note("in_time", label)
            found.labels[name] = label.label
        else:
            self._assign_learned(label, found)

    def _assign_learned(self, label: Label, found: _Assignment) -> None:
        """Note a correction, where the label is of a sample that was learned under another one."""
        learned = self._learned_label(label.id, found)
        if learned is None and label.id not in found.corrections:
            found.late += 1
        elif learned == label.label:
            self._note("repeated", label)
        else:
            found.corrections[label.id] = label.label

    def _withdraw(self, label: Label, found: _Assignment, waiting: WaitingSamples) -> None:
        """Take back the label of a sample: of this batch, of one that waits, or of one that was learned."""
        name = label.id
        if name in found.labels or found.own.get(name) is not None:
            self._note("withdrawn", label, WITHDRAWN)
            found.labels.pop(name, None)
            if name in found.own:
                found.own[name] = None
                found.withdrawn.add(name)
        elif name in found.own or name in waiting or self._learned_label(name, found) is None:
            self._note("unlabelled", label)
        else:
            found.corrections[name] = None

    def _learned_label(self, name: str, found: _Assignment) -> str | None:
        """Return the label under which a sample was learned, or that earlier labels of the batch gave it.

        Of a sample that is held out it is the label that it is evaluated under.
        """
        if name in found.corrections:
            return found.corrections[name]
        if (label := self._held_out.label_of(name)) is not None:
            return label
        return None if self._corrections is None else self._corrections.learned_label(name)

    def _taken_out(self, corrections: Mapping[str, str | None]) -> list[tuple[int, Sample]]:
        """Take samples out of the learner; return them, with their offsets and new labels.

        They are taken out together or, where that is refused, one by one: a sample that is gone does not
        keep the others from being corrected.
        """
        try:
            return self._take_out(corrections)
        except ForgettingError as error:
            if len(corrections) == 1:
                [(name, label)] = corrections.items()
                self._note("refused", Label(name, label), str(error))
                return []
        return [each for item in corrections.items() for each in self._taken_out(dict([item]))]

    def _take_out(self, corrections: Mapping[str, str | None]) -> list[tuple[int, Sample]]:
        if not corrections or self._corrections is None:
            return []
        held_out = [name for name in corrections if self._held_out.label_of(name) is not None]
        learned = [name for name in corrections if name not in held_out]
        taken = list(self._corrections.take_out(learned)) if learned else []
        taken += [self._held_out.take(name) for name in held_out]
        for name, label in corrections.items():
            if label is None:
                self._note("withdrawn", Label(name, label), WITHDRAWN)
            else:
                self._note("corrected", Label(name, label), CORRECTED)
        return [(offset, replace(sample, label=corrections[sample.id])) for offset, sample in taken]

    def _note(self, outcome: LabelOutcome, label: Label, reason: str = "") -> None:
        """Count a label, and log it unless it is learned as usual or changes nothing."""
        self.counts[outcome] += 1
        if outcome in {"corrected", "withdrawn", "refused"}:
            self._log.log("label", reason, outcome=outcome, id=label.id, label=label.label)
        if outcome == "refused" and self.counts[outcome] == 1:
            what = "withdrawn" if label.label is None else "learned"
            logger.warning("a label is not %s: %s; events.jsonl has all such labels", what, reason)

    def _note_late(self, count: int) -> None:
        """Count and log late labels. They are not named: their records may have been forgotten."""
        if count:
            if not self.counts["late"]:
                logger.warning("a label is not learned: %s; events.jsonl counts all such labels", LATE)
            self.counts["late"] += count
            self._log.log("label", LATE, outcome="late", count=count)

    def _left(self, count: int, why: str) -> None:
        """Count and log records that have left without a label."""
        if count:
            reason = f"{count} records {why}; they are not learned"
            if not self.counts["expired"]:
                logger.warning("%s", reason)
            self.counts["expired"] += count
            self._log.log("label", reason, outcome="expired", count=count)


def _labelled_batch(
    batch: Batch,
    found: _Assignment,
    waiting: Sequence[WaitingSample],
    taken_out: Sequence[tuple[int, Sample]],
) -> LabelledBatch:
    """Return the batch of all that is learned now: earlier samples first, in the order of their labels."""
    waited = [(entry.offset, replace(entry.sample, label=found.labels[entry.sample.id])) for entry in waiting]
    earlier = [*waited, *taken_out]
    own = tuple(replace(each, label=found.label_of(each)) for each in batch.samples)
    made = (*(sample for _, sample in earlier), *own)
    offsets = tuple(offset for offset, _ in earlier)
    merged = (
        MergedBatch(batch.offset, made, batch.rejected, time=batch.time, earlier=offsets)
        if earlier
        else replace(batch, samples=own, labels=())
    )
    completed = (
        offset for offset, each in zip(batch.offsets, batch.samples, strict=True) if each.id in found.labels
    )
    return LabelledBatch(
        merged,
        {entry.offset: entry.prediction for entry in waiting if not entry.scored},
        frozenset(completed),
        frozenset(offset for offset, _ in taken_out) | {entry.offset for entry in waiting if entry.scored},
    )
