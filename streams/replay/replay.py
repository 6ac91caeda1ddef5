"""A source that replays a collection in a given order, any number of times, from any offset."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np

from streamcl.errors import BadRecord, SourceError
from streamcl.events import Batch, HoldoutPart, RejectedRecord, Sample, StreamInfo
from streamcl.protocols import State
from streamcl.requests.label import Label
from streams.batch_size import BatchSize
from streams.offsets import Record, batch_of
from streams.replay.collection import Collection, View
from streams.replay.scenarios import Order, ScenarioPart

logger = logging.getLogger(__name__)

OnBadRecord: TypeAlias = Literal["quarantine", "fail"]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A collection with its order: the arguments of a ReplaySource without the batch size."""

    train: Collection
    order: Order
    test: Collection | None = None


class ReplaySource:
    """Yields the collection's samples as batches, in a given order.

    An image that cannot be decoded becomes a RejectedRecord that keeps its offset ("quarantine"), or ends the
    stream with BadRecord ("fail"). The state is the offset, with a digest of the ids in their order: a state
    of another order or another data set is refused with SourceError.

    Where `label_delay` is given, samples have no labels, and each label comes with the batch of the record
    that is so many records later; those of the last records come after the end, without records.

    Where `rate` is given, the stream has a clock, which begins at 0: so many records pass in one of its
    seconds, and a batch has the time of its last one. Nothing waits for it.
    """

    replayable = True  # the data does not change

    def __init__(
        self,
        train: Collection,
        order: Order,
        batch_size: int,
        test: Collection | None = None,
        on_bad_record: OnBadRecord = "quarantine",
        *,
        label_delay: int | None = None,
        rate: float | None = None,
    ) -> None:
        self._train, self._indices = train, order.indices
        self._batch_size, self._on_bad_record = BatchSize(batch_size), on_bad_record
        self._offset = self._labelled = 0
        self._label_delay, self._rate = label_delay, rate
        self._slice = (0, 1)
        ids = b"".join(train.ids[index].encode() + b"\0" for index in order.indices)
        self._digest = hashlib.sha256(ids).hexdigest()
        if (unlabelled := int((train.labels < 0).sum())) * 2 > len(train):
            missing = f"{unlabelled} of {len(train)} records have no label"
            logger.warning("%s: %s; they are predicted and never learned", train.name, missing)
        self.info = StreamInfo(
            name=train.name,
            length=len(order.indices),
            classes=train.classes,
            shifts=order.shifts,
            holdout=holdout_parts(order, train, test) if test is not None else (),
        )

    def __iter__(self) -> Iterator[Batch]:
        records = self._records()
        while taken := tuple(islice(records, self._batch_size.at(self._offset))):
            self._offset += len(taken)
            yield self._labelled_later(batch_of(self._offset - len(taken), taken))
        while self._label_delay is not None and self._labelled < self._offset:
            labels = self._labels(self._labelled + self._batch_size.largest)
            yield Batch(self._offset, (), labels=labels, time=self._time(self._labelled + self._label_delay))

    def adapt_batch_size(self) -> None:
        """From here on batches are small while little of the stream has passed; see `BatchSize`."""
        self._batch_size = replace(self._batch_size, adaptive=True)

    def read_slice(self, rank: int, world: int) -> None:
        """From here on decode only records at offsets `rank` modulo `world`; the others have no pixels."""
        self._slice = (rank, world)

    def fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Yield the train samples with these ids."""
        yield from self._train.fetch(ids)

    def state_dict(self) -> State:
        """Return the offset of the next record, a digest of the order, and how many labels have come."""
        later = {} if self._label_delay is None else {"labelled": self._labelled}
        return {"offset": self._offset, "order": self._digest, **later}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the saved offset. Raise SourceError where the data or its order differs."""
        if state.get("order") != self._digest:
            raise SourceError(
                f"{self._train.name}: the saved position belongs to other data or to another order of them",
                hint="resume with the data set, scenario and seed that the run began with; "
                "for files that are added while a run lasts use source: folder",
            )
        offset = int(state.get("offset", -1))
        if not 0 <= offset <= len(self._indices):
            raise SourceError(f"the saved offset is {offset}, the stream has {len(self._indices)} records")
        self._offset = offset
        self._labelled = int(state.get("labelled", 0))

    def _labelled_later(self, batch: Batch) -> Batch:
        """Return the batch with its time, and the labels that come with it in place of its samples' own."""
        if self._label_delay is None:
            return batch if self._rate is None else replace(batch, time=self._time(batch.end))
        samples = tuple(replace(sample, label=None) for sample in batch.samples)
        labels = self._labels(batch.end - self._label_delay)
        return replace(batch, samples=samples, labels=labels, time=self._time(batch.end))

    def _time(self, records: int) -> float | None:
        """Return the time at which so many records have passed; None without a clock."""
        return None if self._rate is None else records / self._rate

    def _labels(self, end: int) -> tuple[Label, ...]:
        """Return the labels of the records before the offset `end` that have not come."""
        first, self._labelled = self._labelled, min(max(self._labelled, end), self._offset)
        records = (self._train.without_pixels(int(self._indices[at])) for at in range(first, self._labelled))
        return tuple(Label(each.id, each.label) for each in records if each.label is not None)

    def _records(self) -> Iterator[Record]:
        rank, world = self._slice
        for offset in range(self._offset, len(self._indices)):
            index = int(self._indices[offset])
            if offset % world != rank:
                yield self._train.without_pixels(index)
                continue
            try:
                yield self._train[index]
            except BadRecord as error:
                if self._on_bad_record == "fail":
                    raise
                known = self._train.without_pixels(index)
                names = (known.label, known.subject, known.domain, known.privacy)
                yield RejectedRecord(offset, known.id, str(error), *names)


def holdout_parts(order: Order, train: Collection, test: Collection) -> tuple[HoldoutPart, ...]:
    """Return the test samples of each part of the order; without parts, of each domain, or all in one.

    A part without test samples is left out. Test domains that no part names (CORe50 tests on sessions that
    are never trained) become parts of their own, without an end offset.
    """
    codes = np.unique(test.domains.index) if test.domains else ()
    present = [test.domains.names[code] for code in codes if code >= 0] if test.domains else []
    parts = [part for part in order.parts if part.classes or part.domains]
    if not parts and len(present) < 2:
        parts = [ScenarioPart("all")]
    named = {name for part in parts for name in part.domains}
    if named or not parts:
        parts += [ScenarioPart(name, domains=(name,)) for name in present if name not in named]
    return tuple(
        HoldoutPart(part.name, View(test, positions), _end_offset(part, order, train))
        for part in parts
        if len(positions := test.where(part.classes, part.domains))
    )


def _end_offset(part: ScenarioPart, order: Order, train: Collection) -> int | None:
    learned = np.isin(order.indices, train.where(part.classes, part.domains))
    return int(np.flatnonzero(learned)[-1]) + 1 if learned.any() else None
