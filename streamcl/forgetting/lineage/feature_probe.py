"""Features of probe images over the life of a run: whether records were learned with those of today."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np

from streamcl.forgetting.ledger.ledger import Ledger
from streamcl.forgetting.lineage.feature_binding import SAME_FEATURES, RowComparison
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.storage.plain_state import Array

logger = logging.getLogger(__name__)

PROBES = "features of probe images"
"""The name under which the ledger remembers them."""

NUMBERS_PER_IMAGE = 16
"""Numbers that are stored of each image."""


ProbeComparison: TypeAlias = Callable[[Iterable[Sequence[LineageRow]]], "str | None"]
"""Returns how present features differ from those that rows were learned with; None: not at all."""


def no_known_change(chunks: Iterable[Sequence[LineageRow]]) -> str | None:  # noqa: ARG001 - a ProbeComparison
    """Return None: nothing is known of features."""
    return None


@dataclass(frozen=True, slots=True)
class FeatureChecks:
    """How present features are compared with those that were learned.

    rows: compares those of samples, once they are derived; None where nothing is known of them. probes:
    compares those of probe images, before anything is derived.
    """

    rows: RowComparison | None = None
    probes: ProbeComparison = no_known_change


@dataclass(frozen=True, slots=True)
class FeatureProbe:
    """Projections of the features of probe images, and the versions of the libraries that computed them."""

    projections: tuple[float, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, features: Array, versions: Mapping[str, str]) -> FeatureProbe:
        """Return the probe of features.

        Args:
            features: float64 [n, D].
            versions: by the name of the library.
        """
        random = np.random.Generator(np.random.PCG64(features.shape[1]))
        directions = random.standard_normal((features.shape[1], NUMBERS_PER_IMAGE))
        norms = np.maximum(np.linalg.norm(features, axis=1), np.finfo(float).tiny)[:, None]
        return cls(tuple(map(float, (features / norms @ directions).ravel())), dict(versions))

    def difference(self, other: FeatureProbe) -> float:
        """Return the largest difference of a projection over the norm of its features; NaN where one is."""
        if len(self.projections) != len(other.projections):
            return float("inf")
        return float(np.abs(np.subtract(self.projections, other.projections)).max(initial=0.0))

    def is_same(self, other: FeatureProbe) -> bool:
        """Return whether both are of the same features, up to rounding."""
        return self.difference(other) <= SAME_FEATURES

    def describe(self, earlier: FeatureProbe) -> str:
        """Return the versions that differ, then and now; or that none does."""
        names = sorted({*self.versions, *earlier.versions})
        pairs = [(name, earlier.versions.get(name), self.versions.get(name)) for name in names]
        changed = [f"{name} {then}, now {now}" for name, then, now in pairs if then != now]
        return "; ".join(changed) or "with the same versions of libraries"


class ProbeHistory:
    """The probes with which the records of a run were learned, from the offset at which each began.

    Args:
        ledger: remembers them.
        present: the probe of this process; None where the backbone cannot be probed.
    """

    def __init__(self, ledger: Ledger, present: FeatureProbe | None) -> None:
        self._ledger, self._present = ledger, present
        known = ledger.recall(PROBES) or []
        self._eras = [
            (each["offset"], FeatureProbe(tuple(each["projections"]), each["versions"])) for each in known
        ]

    def begin(self, offset: int) -> None:
        """Note that from `offset` on records are learned with present features; warn where these are new."""
        before = self._eras
        self._eras = [(start, probe) for start, probe in before if start < offset]
        if self._present is not None and not (self._eras and self._present.is_same(self._eras[-1][1])):
            if self._eras:
                change = self._change(self._eras[-1][1])
                logger.warning("%s: earlier records can no longer be erased exactly with these", change)
            self._eras.append((offset, self._present))
        if self._eras != before:
            facts = [{"offset": start, **asdict(probe)} for start, probe in self._eras]
            self._ledger.remember(PROBES, facts)

    def difference_from_learned(self, chunks: Iterable[Sequence[LineageRow]]) -> str | None:
        """Return how present features differ from those that rows were learned with; None: not at all.

        Args:
            chunks: of the rows, in the order of the stream; read where any record had other features.
        """
        if self._present is None:
            return None
        ends = [start for start, _ in self._eras[1:]] + [float("inf")]
        others = [
            (start, end, probe)
            for (start, probe), end in zip(self._eras, ends, strict=True)
            if not self._present.is_same(probe)
        ]
        for row in (row for chunk in (chunks if others else ()) for row in chunk):
            for start, end, probe in others:
                if start <= row.offset < end:
                    return self._change(probe)
        return None

    def _change(self, earlier: FeatureProbe) -> str:
        """Return a clause on how the present features differ from earlier ones."""
        assert self._present is not None
        return (
            f"features of probe images differ by {self._present.difference(earlier):.1e} from those of when "
            f"the run learned ({self._present.describe(earlier)})"
        )
