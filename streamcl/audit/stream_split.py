"""A run's stream sorted by what became of its samples, with some of each kind to ask models about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from streamcl.audit.data import Flags
from streamcl.audit.scope import Scope, placed
from streamcl.errors import ForgettingError
from streamcl.events import Batch, Sample
from streamcl.forgetting.monitoring.held_out import spread_over, within
from streamcl.protocols import Source

MOST_BYTES = 512 << 20
"""Images of one kind that are held in memory at most."""


@dataclass(slots=True)
class SortedStream:
    """What was kept and what was forgotten, by offset, with the label that each was learned with.

    forgotten, retained, held: samples to ask about, drawn from all of their kind. places: the offsets of
    `retained`. noted: kept samples that were wanted. ids, subjects, domains: of every forgotten sample.
    """

    kept: Mapping[int, str]
    gone: dict[int, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    subjects: set[str | None] = field(default_factory=set)
    domains: set[str | None] = field(default_factory=set)
    forgotten: list[Sample] = field(default_factory=list)
    retained: list[Sample] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    held: Sequence[Sample] = ()
    noted: list[Sample] = field(default_factory=list)

    def labels(
        self, left_out: frozenset[int], *, forgotten: bool, instead: Mapping[int, str] | None = None
    ) -> Callable[[int], str | None]:
        """What a model learns each sample as: without those left out, with or without the forgotten ones.

        instead: other labels than the samples had.
        """
        taught = {**self.kept, **(self.gone if forgotten else {}), **(instead or {})}
        for offset in left_out:
            del taught[offset]
        return taught.get

    def members(self, left_out: frozenset[int]) -> Flags:
        """bool [N]: which of the retained samples asked about such a model has learned."""
        return np.array([offset not in left_out for offset in self.places])


def sort_stream(
    source: Source,
    kept: Mapping[int, str],
    scope: Scope,
    *,
    held: Sequence[Sample],
    noted: Collection[int],
    every: int,
    most: int,
    seed: int,
) -> SortedStream:
    """Read the stream once, to where either kind ends.

    held: held-out samples. noted: offsets of kept samples that are wanted. every: one in so many forgotten
    samples is asked about. most: retained samples that are. Raises ForgettingError where the stream has no
    sample of a kind.
    """
    found = SortedStream(kept, held=held)
    rng = np.random.default_rng(seed)
    drawn = set(rng.choice(sorted(kept), min(most, len(kept)), replace=False).tolist()) if kept else set()
    end = max([*kept, scope.end - 1])
    for batch in source:
        if isinstance(batch, Batch):
            for offset, sample in placed(batch):
                if offset in kept:
                    _keep(found, offset, sample, asked=offset in drawn)
                    if offset in noted:
                        found.noted.append(replace(sample, label=kept[offset]))
                elif scope.holds(offset, sample):
                    _forget(found, offset, sample, asked=len(found.gone) % every == 0)
            if batch.end > end:
                break
    found.forgotten = within(found.forgotten, MOST_BYTES)
    found.retained = within(found.retained, MOST_BYTES)
    found.places = found.places[: len(found.retained)]
    for name, samples in (("forgotten", found.forgotten), ("retained", found.retained)):
        if not samples:
            raise ForgettingError(f"no {name} samples are in the stream, so there is nothing to audit with")
    return found


def held_out(source: Source, most: int) -> list[Sample]:
    """At most so many of the source's labelled held-out samples, evenly over its parts."""
    labelled = [sample for sample in spread_over(source.info.holdout, most) if sample.label is not None]
    return within(labelled, MOST_BYTES)


def _keep(found: SortedStream, offset: int, sample: Sample, *, asked: bool) -> None:
    if asked:
        found.retained.append(replace(sample, label=found.kept[offset]))
        found.places.append(offset)


def _forget(found: SortedStream, offset: int, sample: Sample, *, asked: bool) -> None:
    found.gone[offset] = str(sample.label)
    found.ids.append(sample.id)
    found.subjects.add(sample.subject)
    found.domains.add(sample.domain)
    if asked:
        found.forgotten.append(sample)
