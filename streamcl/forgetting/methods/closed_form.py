"""Exact erasure from closed-form statistics: the samples' own share, derived again or kept, is subtracted.

ACU (arXiv 2505.12239) for a head as in RanPAC (arXiv 2307.02251). With G = sum h^T h and
Q = sum h^T y over what was learned, G - G_f and Q - Q_f are the sums without the forgotten samples, so the
weights solved from them are those of a model that never saw them, up to rounding in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamcl.capabilities.interfaces import (
    RemovableStatistics,
    Rows,
    StatisticRows,
    StatisticsPart,
    V,
)
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee, Sample
from streamcl.forgetting.methods.protocol import (
    CANNOT_DROP,
    Context,
    DataLocation,
    ErasureResult,
    LineageRow,
    StatisticsView,
    drop_class,
    knows,
    purge,
    shared_weights,
)

NO_STATISTICS = "this learner's knowledge is not a sum that samples can be taken out of"

SECOND_LOOK = 63
"""Samples whose features are derived twice; an odd number, so that a batch's size would show."""

ROWS = 1024
"""Samples whose rows are summed at once: 44 MB of them with the default learner."""

TOLERANCE = 1e-9
"""Relative difference of sums, in float64, up to which an erasure is called exact."""


class ClosedFormRemoval:
    """Subtracts samples from a learner's statistics; for a class the column goes too.

    Exact while every sample in scope can be brought back as it was, or its share was kept on disk, and no
    shared weights have seen any.
    """

    name = "closed_form"
    guarantee: Guarantee = "exact"
    cost = 20

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Sums, samples that can be had again, and no shared weights that saw them."""
        if context.capabilities.statistics is None:
            return NO_STATISTICS
        if request.kind == "class" and context.capabilities.drop_class is None:
            return CANNOT_DROP
        if not knows(request, context):
            return "no class of that name was learned"
        if touched := shared_weights(context):
            return f"the samples have trained shared weights ({', '.join(touched)})"
        if not context.scope.learned or kept_whole(context) is not None:
            return None
        return context.unavailable

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Gather the share of all samples in scope, subtract once, drop the class: all of it or nothing."""
        statistics = context.capabilities.statistics
        if statistics is None:
            raise ForgettingError(NO_STATISTICS)
        value, figures = _of_scope(statistics, context)
        if value is not None:
            figures |= statistics.subtract(value)
        drop_class(request, context)
        purged = purge(request, context)
        return ErasureResult(
            self.name,
            self.guarantee,
            "None beyond rounding: the statistics equal those of a stream without the samples.",
            (
                DataLocation("head statistics", "erased", f"{context.scope.learned} samples subtracted"),
                DataLocation("adapters", "not affected", "no weight of this learner is trained by gradient"),
                DataLocation("optimizer moments", "not affected", "there is no optimizer"),
                DataLocation("importance", "not affected", "there are no importance weights"),
                DataLocation(
                    "hard buffer", "erased" if purged else "not affected", f"{purged} samples were in it"
                ),
            ),
            figures,
        )


def kept_whole(context: Context) -> StatisticsView | None:
    """Return the sums kept on disk, where they hold all of the scope, so that no sample is needed."""
    statistics, kept = context.capabilities.statistics, context.kept
    rows = None if statistics is None else statistics.by_rows
    return kept if kept is not None and rows is not None and kept.whole(len(rows.widths)) else None


def _of_scope(statistics: RemovableStatistics[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """The statistics of all samples in scope, None of none, with figures on how they were derived."""
    rows = statistics.by_rows
    if rows is None:
        return _from_samples(statistics, context)
    kept = kept_whole(context)
    if kept is None or not context.scope.learned:
        return _from_rows(rows, context)
    names = context.learner.classes
    value = rows.from_parts([kept.parts(head, names) for head in range(len(rows.widths))])
    kept.drop()
    return value, {"rederived": 0, "from_kept_statistics": context.scope.learned}


def _from_samples(statistics: RemovableStatistics[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """By samples that are brought back, some at a time."""
    total: V | None = None
    figures: dict[str, Any] = {}
    for traces in context.scope.chunks():
        samples = context.samples(traces)
        value = statistics.of(samples)
        figures = figures or _derived_again(statistics, samples[:SECOND_LOOK])
        total = value if total is None else total + value
    return total, figures


def _from_rows(statistics: StatisticRows[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """The same by rows, of which many are summed at once; they are taken out of kept sums on the way."""
    total: V | None = None
    figures: dict[str, Any] = {}
    for chunks in _together(context.scope.chunks()):
        parts: list[list[StatisticsPart]] = [[] for _ in statistics.widths]
        for traces in chunks:
            samples = context.samples(traces)
            rows = statistics.rows_of(samples)
            figures = figures or _rows_again(statistics, samples[:SECOND_LOOK], rows)
            if context.kept is not None:
                context.kept.take_out(traces, rows)
            for head, part in zip(rows, parts, strict=True):
                part.append(_by_class(head, samples))
        value = statistics.from_parts(parts)
        total = value if total is None else total + value
    return total, figures


def _together(chunks: Iterator[Sequence[LineageRow]]) -> Iterator[list[Sequence[LineageRow]]]:
    """Chunks in groups of ROWS samples or a little more."""
    group: list[Sequence[LineageRow]] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(map(len, group)) >= ROWS:
            yield group
            group = []
    if group:
        yield group


def _by_class(rows: Rows, samples: Sequence[Sample]) -> StatisticsPart:
    labels = [str(sample.label) for sample in samples]
    sums = {
        label: (labels.count(label), rows[[each == label for each in labels]].sum(axis=0))
        for label in dict.fromkeys(labels)
    }
    return StatisticsPart(rows, sums)


def _rows_again(
    statistics: StatisticRows[V], samples: Sequence[Sample], rows: Sequence[Rows]
) -> dict[str, Any]:
    """How well a second derivation of the first rows, in another order, agrees with them; see above."""
    again = statistics.rows_of(samples[::-1])
    pairs = [(one[: len(samples)], other[::-1]) for one, other in zip(rows, again, strict=True)]
    error = max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-300) for a, b in pairs)
    return _sound(error, len(samples))


def _derived_again(statistics: RemovableStatistics[V], samples: Sequence[Sample]) -> dict[str, Any]:
    """How well a second derivation, of the same samples in another order, agrees with the first.

    Raises ForgettingError where it does not: what cannot be derived twice cannot be subtracted exactly.
    """
    return _sound(statistics.of(samples).relative_error(statistics.of(samples[::-1])), len(samples))


def _sound(error: float, count: int) -> dict[str, Any]:
    if not error <= TOLERANCE:
        raise ForgettingError(
            f"features derived twice differ by {error:.1e}, more than {TOLERANCE:.0e}",
            hint="set precision: 32-true and threads: 1, or accept another guarantee",
        )
    return {"rederived": count, "rederivation_error": error}
