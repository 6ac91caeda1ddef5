"""A request with all that it selects: rows of the lineage, and names that nothing may hold afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.ledger.tombstones import Tombstones
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.lineage.selection import Selection
from streamcl.forgetting.request_replay import RequestReplay, StreamReplay
from streamcl.sinks.redaction import RedactionTarget
from streamcl.sources.hidden_labels import hide_labels


@dataclass(frozen=True, eq=False)
class ErasurePlan:
    """A request with the rows that it selects, which the lineage is searched for once.

    domains, parts: names of domains of which no sample is left, and of held-out parts that bear the name of
    such a domain or class, among those that the run has figures of.
    """

    request: ForgetRequest
    rows: Selection
    domains: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def close(self) -> None:
        """Drop the selection of rows."""
        self.rows.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that nothing may name afterwards: the request's, and those without a sample left."""
        return emptied_classes(self.request, self.rows)

    @property
    def unlearned(self) -> frozenset[str]:
        """The ids of the samples that have passed and were never learned."""
        return frozenset(self.target.ids) - self._scan[1]

    @property
    def target(self) -> RedactionTarget:
        """The samples and names that no file of the run may hold afterwards."""
        return self._scan[0]

    @cached_property
    def _scan(self) -> tuple[RedactionTarget, frozenset[str]]:
        """The target, and the ids of samples that were learned: of one scan of the rows."""
        rows = [row for chunk in self.rows.chunks(learned=False) for row in chunk]
        ids = {row.id for row in rows} | set(self.request.ids)
        target = RedactionTarget(
            {row.offset for row in rows}, ids, frozenset(self.classes), frozenset(self.parts)
        )
        return target, frozenset(row.id for row in rows if row.learned)


def plan_erasure(request: ForgetRequest, lineage: Lineage, run: RunResources) -> ErasurePlan:
    """Return what the request reaches in a run; change nothing."""
    rows = lineage.select(request)
    classes, hashes = emptied_classes(request, rows), rows.emptied.domains
    own = {part.name for part in (run.held_out.parts if run.held_out is not None else ())}
    parts = dict.fromkeys([*run.history.parts, *(part.name for part in run.source.info.holdout)])
    known = {*run.scores.per_domain, *(text for part in parts for text in _possible_domains(part))}
    if request.domain is not None:
        known.add(request.domain)
    domains = tuple(sorted(name for name in known if lineage.digest("domain", name) in hashes))
    gone = (*classes, *domains)
    hidden = tuple(p for p in parts if p not in own and any(mentions(p, name) for name in gone))
    return ErasurePlan(request, rows, domains, hidden)


def request_replay(
    stream: StreamReplay | None, rows: Selection, lineage: Lineage, tombstones: Tombstones, end: int
) -> RequestReplay | None:
    """Return the replay that would erase some records; None where the run has none, or none are selected.

    Args:
        stream: replays the run's stream.
        rows: the request's records.
        lineage: knows which records other requests of this erasure have taken.
        tombstones: of what was erased before.
        end: offset at which the run stands.
    """
    if stream is None or not rows.count:
        return None

    def select() -> frozenset[int]:
        offsets = (row.offset for chunk in rows.chunks(learned=False) for row in chunk)
        return lineage.hidden_offsets().union(offsets)

    def filter_batch(batch: Batch) -> Batch:
        unlearned = lineage.unlearned_offsets(batch.offset, batch.end)  # such as those that are held out
        return hide_labels(tombstones.drop_erased(batch), unlearned)

    return RequestReplay(stream, select, end, filter_batch)


def emptied_classes(request: ForgetRequest, rows: Selection) -> tuple[str, ...]:
    """Return the class that is to be forgotten, and those of which a request leaves no sample."""
    asked = () if request.label is None else (request.label,)
    return tuple(dict.fromkeys([*asked, *rows.emptied.classes]))


def mentions(part: str, name: str) -> bool:
    """Return whether the name of a held-out part is the name of a class or domain, or has it as a word.

    A number within a name is taken for the part's own.

    >>> mentions("cat", "cat"), mentions("2 webcam", "webcam"), mentions("cats", "cat")
    (True, True, False)
    >>> mentions("4", "4"), mentions("part 4", "4")
    (True, False)
    """
    if part == name or name.isdigit():
        return part == name
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", part) is not None


def _possible_domains(part: str) -> Iterator[str]:
    """Yield the texts in a part's name that may be a domain's: all of it, and what follows its first word."""
    yield part
    yield from part.split(" ", 1)[1:]
