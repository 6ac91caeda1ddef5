"""Binds to a sample what was learned of it: its trace, or keyed projections of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.interfaces import Rows
from streamcl.events import Sample
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.protocols import Learner
from streamcl.storage.plain_state import Array

PROJECTIONS = 2
"""Numbers a row and head. One alone misses a change of relative size s with a chance of about 1e-5 / s."""

SAME_FEATURES = 1e-5
"""Relative difference of features from those that were learned, up to which they are called the same: batches
of another size and other thread counts round by some 1e-7, another resize or library changes 1e-3."""

NOISE = 1e-12
"""Relative rounding of the projections themselves, in float64; differences below it are called none."""


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """The comparison of derived rows with those that were learned.

    compared: samples whose rows are bound. largest: difference of a projection over the norm of its row.
    """

    compared: int = 0
    largest: float = 0.0

    def __add__(self, other: FeatureDrift) -> FeatureDrift:
        """Return the comparison of both."""
        return FeatureDrift(self.compared + other.compared, float(np.maximum(self.largest, other.largest)))


RowComparison: TypeAlias = Callable[[Sequence[LineageRow], Sequence[Rows]], FeatureDrift]
"""Compares rows that are derived now with what the lineage holds of those that were learned."""


class FeatureBinding:
    """Projects the rows that a learner adds to its statistics onto random directions that follow from a key.

    Without the key nobody can compute the projections of other rows, to test a guess or to forge one.
    Of a learner with traces these are kept in their place. One with neither is not bound.

    Args:
        key: of the lineage's hashes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._directions: dict[tuple[int, int], Array] = {}
        self._learned: dict[int, tuple[Sample, bytes]] = {}

    def observe(self, learner: Learner) -> None:
        """Keep the traces of whatever the learner adds from now on, or project its rows."""
        able = capabilities_of(learner)
        statistics = able.statistics
        if able.traces is not None:
            able.traces.on_learned(self.keep)
        elif statistics is not None and statistics.by_rows is not None:
            statistics.by_rows.on_learned(self.add)

    def add(self, samples: Sequence[Sample], rows: Sequence[Array | None]) -> None:
        """Project the rows of samples that are learned, until `take` gives the projections away.

        Args:
            samples: n of them.
            rows: [n, D] in each of the learner's heads; None for a head from which they cannot be subtracted.
        """
        missing = np.full((len(samples), PROJECTIONS), np.nan)
        projected = [missing if each is None else self._project(head, each) for head, each in enumerate(rows)]
        joined = np.concatenate(projected, axis=1)  # [n, heads * PROJECTIONS]
        for sample, numbers in zip(samples, joined, strict=True):
            self._learned[id(sample)] = (
                sample,
                numbers.tobytes(),
            )  # the sample keeps its id() from being reused

    def keep(self, samples: Sequence[Sample], traces: Sequence[bytes]) -> None:
        """Keep the traces of samples that are learned, until `take` gives them away."""
        for sample, trace in zip(samples, traces, strict=True):
            self._learned[id(sample)] = (sample, trace)

    def take(self, samples: Sequence[Sample]) -> list[bytes | None]:
        """Return traces or projections of a batch's samples, None of one not learned; forget them here."""
        found = [self._learned.get(id(sample), (sample, None))[1] for sample in samples]
        self._learned.clear()
        return found

    def drift(self, bound: Sequence[LineageRow], rows: Sequence[Rows]) -> FeatureDrift:
        """Return how far rows that are derived now lie from those that were learned.

        Args:
            bound: the n samples in the lineage.
            rows: [n, D] in each of the learner's present heads.
        """
        known = [place for place, row in enumerate(bound) if row.features is not None]
        if not known or not rows:
            return FeatureDrift()
        numbers = [np.frombuffer(bound[place].features or b"") for place in known]
        then = np.full((len(known), max(map(len, numbers))), np.nan)  # a head is bound for some samples only
        for row, each in zip(then, numbers, strict=True):
            row[: len(each)] = each
        largest = 0.0
        for head, each in enumerate(rows[: then.shape[1] // PROJECTIONS]):
            now = np.asarray(each, np.float64)[known]
            recorded = then[:, PROJECTIONS * head : PROJECTIONS * (head + 1)]
            norm = np.maximum(np.linalg.norm(now, axis=1), np.finfo(float).tiny)[:, None]
            shares = (
                np.abs(self._project(head, now) - recorded) / norm
            )  # NaN of features is NaN, and no match
            largest = float(np.maximum(largest, shares[~np.isnan(recorded)].max(initial=0.0)))
        return FeatureDrift(len(known), 0.0 if largest < NOISE else largest)

    def _project(self, head: int, rows: Array) -> Array:
        """Return the projections [n, PROJECTIONS] of rows [n, D]."""
        width = rows.shape[1]
        if (head, width) not in self._directions:
            seed = hashlib.blake2b(f"features:{head}:{width}".encode(), key=self._key).digest()
            random = np.random.Generator(np.random.PCG64(int.from_bytes(seed)))
            self._directions[head, width] = random.standard_normal((width, PROJECTIONS))
        projected: Array = np.asarray(rows, np.float64) @ self._directions[head, width]
        return projected
