"""Notes what is odd about the records of a stream, and logs each oddity once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from streamcl.events import Sample

logger = logging.getLogger(__name__)

MAX_RECENT_IDS = 100_000  # ids that are remembered, some 20 MB; a repetition after more records is not found
LABELS_CHECKED = 256  # labels that are counted before it is said that most are missing


class RecordWarnings:
    """Oddities of a stream's records: labels spelled differently, labels missing, ids repeated.

    Nothing is changed here, and nothing of it is part of a checkpoint: a resumed process begins anew.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._spelling_said = False
        self._total = self._unlabelled = 0
        self._ids: OrderedDict[int, int] | None = OrderedDict()

    def observe(self, offset: int, sample: Sample, *, label: Any, own_id: bool) -> None:
        """Note a sample. label: as its record gave it. own_id: whether the record gave the id."""
        if not self._spelling_said and isinstance(label, str) and sample.label not in {label, None}:
            self._spelling_said = True
            logger.warning(
                "%s: the label %s is read as %s: blanks around names are dropped and characters composed "
                "(NFC), so that each class has one spelling; this is said once",
                self._name,
                ascii(label)[:80],
                ascii(sample.label)[:80],
            )
        if own_id and self._ids is not None:
            self._note_id(offset, sample.id, self._ids)
        self._total += 1
        self._unlabelled += sample.label is None
        if self._total == LABELS_CHECKED:
            self._say_unlabelled()

    def end(self) -> None:
        """Note the end of the stream."""
        if self._total < LABELS_CHECKED:
            self._say_unlabelled()

    def _say_unlabelled(self) -> None:
        if 2 * self._unlabelled > self._total:
            logger.warning(
                "%s: %d of the first %d records have no label; they are predicted, and learned only "
                "if labels come for them",
                self._name,
                self._unlabelled,
                self._total,
            )

    def _note_id(self, offset: int, name: str, ids: OrderedDict[int, int]) -> None:
        key = hash(name)
        first = ids.setdefault(key, offset)
        if first != offset:
            logger.warning(
                "%s: the records at offsets %d and %d have the same id %s: both are learned, and a request "
                "covers both, with the pictures of both; this is said once",
                self._name,
                first,
                offset,
                ascii(name)[:80],
            )
            self._ids = None
        elif len(ids) > MAX_RECENT_IDS:
            ids.popitem(last=False)
