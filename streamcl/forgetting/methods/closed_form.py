"""Exact erasure from closed-form statistics: the samples' own share, derived again or stored, is subtracted.

ACU (arXiv 2505.12239) for a head as in RanPAC (arXiv 2307.02251). With G = sum h^T h and
Q = sum h^T y over what was learned, G - G_f and Q - Q_f are the sums without the forgotten samples, so the
weights solved from them are those of a model that never saw them, up to rounding in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from streamcl.capabilities.interfaces import (
    RemovableStatistics,
    Rows,
    SampleTraces,
    StatisticRows,
    StatisticsPart,
    V,
)
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.lineage.feature_binding import SAME_FEATURES, FeatureDrift
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.methods.protocol import (
    CANNOT_DROP,
    Context,
    DataLocation,
    ErasureResult,
    drop_class,
    erased_or_not,
    features_location,
    knows_class,
    not_affected,
    purge,
    required,
    shared_weights,
)
from streamcl.forgetting.statistics.block import grouped_sums
from streamcl.forgetting.statistics.store import StatisticsSelection
from streamcl.requests.terms import Guarantee

NO_STATISTICS = "this learner's knowledge is not a sum that samples can be taken out of"

DERIVED_TWICE = 63
"""Samples whose features are derived twice; an odd number, so that a batch's size would show."""

ROW_CHUNK = 1024
"""Samples whose rows are summed at once: 44 MB of them with the default learner."""

UNTOUCHED = "none of the samples was in any step that trained them"

TOLERANCE = 1e-9
"""Relative difference of sums, in float64, up to which an erasure is called exact."""


class ClosedFormRemoval:
    """Subtracts samples from a learner's statistics; for a class the column goes too.

    Exact while every sample in scope can be retrieved as it was, or its share is stored on disk or follows
    from its trace, and no shared weights have been trained on any.
    """

    name = "closed_form"
    guarantee: Guarantee = "exact"
    cost = 20

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless there are sums, samples or their share, and no trained shared weights.

        Samples do where their features are still those that were learned.
        """
        if context.capabilities.statistics is None:
            return NO_STATISTICS
        if request.kind == "class" and context.capabilities.drop_class is None:
            return CANNOT_DROP
        if not knows_class(request, context):
            return "no class of that name was learned"
        if touched := shared_weights(context):
            return f"the samples have trained shared weights ({', '.join(touched)})"
        if not needs_samples(context):
            return None
        return context.unavailable or context.changed_features

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Add up the share of all samples in scope, subtract once, drop the class: all of it or nothing."""
        statistics = required(context.capabilities.statistics, NO_STATISTICS)
        value, figures = _of_scope(statistics, context)
        if value is not None:
            figures |= statistics.subtract(value)
            _require_possible(figures)
        figures |= _remove_latents(context)
        drop_class(request, context)
        return ErasureResult(
            self.name,
            self.guarantee,
            _residual(figures),
            (
                DataLocation("head statistics", "erased", f"{context.scope.learned} samples subtracted"),
                *_trained_weights(context, figures),
                *not_affected(("importance",), "there are no importance weights"),
                *_traces(figures),
                *purge(request, context),
            ),
            figures,
        )


def _remove_latents(context: Context) -> dict[str, Any]:
    """Remove the samples' stored features; return how many there were, nothing without a store of them."""
    if (retrained := context.capabilities.retrained) is None:
        return {}
    return {"latents_removed": retrained.remove(context.scope.offsets)}


def _trained_weights(context: Context, figures: Mapping[str, Any]) -> tuple[DataLocation, ...]:
    """Return what receipts say of weights trained by gradient, which no sample in scope has trained."""
    if context.capabilities.retrained is not None:
        removed = int(figures["latents_removed"])
        why = "trained again from the stored features that remain" if removed else UNTOUCHED
        return (
            features_location(removed),
            DataLocation("adapters", erased_or_not(removed), why),
            *not_affected(("optimizer moments",), "none are kept after a training"),
        )
    if context.capabilities.shared_weights is None:
        return (
            *not_affected(("adapters",), "no weight of this learner is trained by gradient"),
            *not_affected(("optimizer moments",), "there is no optimizer"),
        )
    return not_affected(("adapters", "optimizer moments"), UNTOUCHED)


def _traces(figures: Mapping[str, Any]) -> tuple[DataLocation, ...]:
    """Return what receipts say of traces, where there were any."""
    if not (count := figures.get("from_traces")):
        return ()
    return (
        DataLocation("sample traces", "erased", f"those of {count} samples, in their rows of the lineage"),
    )


def needs_samples(context: Context) -> bool:
    """Return whether samples have to be retrieved, since neither their sums nor their traces are stored."""
    if not context.scope.learned or context.capabilities.traces is not None:
        return False
    return stored_share(context) is None


def stored_share(context: Context) -> StatisticsSelection | None:
    """Return the sums stored on disk, where they hold all of the scope, so that no sample is needed."""
    statistics, stored = context.capabilities.statistics, context.statistics
    rows = None if statistics is None else statistics.by_rows
    if stored is None or rows is None or not stored.is_complete(len(rows.widths)):
        return None
    return stored


def _of_scope(statistics: RemovableStatistics[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """Return the statistics of all samples in scope, None of none, with figures on how they were derived."""
    if (traces := context.capabilities.traces) is not None:
        return _from_traces(traces, context)
    rows = statistics.by_rows
    if rows is None:
        return _from_samples(statistics, context)
    stored = stored_share(context)
    if stored is None or not context.scope.learned:
        return _from_rows(rows, context)
    names = context.learner.classes
    value = rows.from_parts([stored.parts(head, names) for head in range(len(rows.widths))])
    stored.drop()
    return value, {"rederived": 0, "from_stored_statistics": context.scope.learned}


def _from_traces(traces: SampleTraces[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """Add up what samples added by their traces, which the lineage holds; no sample is retrieved."""
    total: V | None = None
    for chunks in _grouped(context.scope.chunks()):
        rows = [row for chunk in chunks for row in chunk]
        kept = [row.features for row in rows if row.features is not None]
        if len(kept) < len(rows):
            raise ForgettingError("the lineage lacks the traces of some samples")
        value = traces.of_traces(kept, [str(row.label) for row in rows])
        total = value if total is None else total + value
    return total, {"rederived": 0, "from_traces": context.scope.learned}


def _from_samples(statistics: RemovableStatistics[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """Derive the statistics from samples that are retrieved, some at a time."""
    total: V | None = None
    figures: dict[str, Any] = {}
    for rows in context.scope.chunks():
        samples = context.samples(rows)
        value = statistics.of(samples)
        if not figures:
            first = samples[:DERIVED_TWICE]
            error = statistics.of(first).relative_error(statistics.of(first[::-1]))
            figures = _sound(error, len(first))
        total = value if total is None else total + value
    return total, figures


def _from_rows(statistics: StatisticRows[V], context: Context) -> tuple[V | None, dict[str, Any]]:
    """Derive them by rows, of which many are summed at once; subtract these from stored sums on the way."""
    total: V | None = None
    figures: dict[str, Any] = {}
    drift = FeatureDrift()
    for chunks in _grouped(context.scope.chunks()):
        parts: list[list[StatisticsPart]] = [[] for _ in statistics.widths]
        for chunk in chunks:
            samples = context.samples(chunk)
            rows = statistics.rows_of(samples)
            figures = figures or _rows_again(statistics, samples[:DERIVED_TWICE], rows)
            if context.drift is not None:
                drift += context.drift(chunk, rows)
            if context.statistics is not None:
                context.statistics.subtract(chunk, rows)
            labels = [str(sample.label) for sample in samples]
            for head, part in zip(rows, parts, strict=True):
                part.append(StatisticsPart(head, grouped_sums(head, labels)))
        value = statistics.from_parts(parts)
        total = value if total is None else total + value
    return total, figures | _same_features(drift)


def _grouped(chunks: Iterator[Sequence[LineageRow]]) -> Iterator[list[Sequence[LineageRow]]]:
    """Yield chunks in groups of ROW_CHUNK samples or a little more."""
    group: list[Sequence[LineageRow]] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(map(len, group)) >= ROW_CHUNK:
            yield group
            group = []
    if group:
        yield group


def _rows_again(
    statistics: StatisticRows[V], samples: Sequence[Sample], rows: Sequence[Rows]
) -> dict[str, Any]:
    """Return how well a second derivation of the first rows, in another order, agrees with them."""
    again = statistics.rows_of(samples[::-1])
    pairs = [(one[: len(samples)], other[::-1]) for one, other in zip(rows, again, strict=True)]
    error = max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-300) for a, b in pairs)
    return _sound(error, len(samples))


def _same_features(drift: FeatureDrift) -> dict[str, Any]:
    """Return figures; raise ForgettingError where features are not those that were learned."""
    if not drift.largest <= SAME_FEATURES:
        raise ForgettingError(
            f"features of the samples differ by {drift.largest:.1e} from those that were learned, more than "
            f"{SAME_FEATURES:.0e}: weights, image processing or a library have changed",
            hint="erase with the versions of then (see the start events), or accept another guarantee",
        )
    return {"features_compared": drift.compared, "feature_drift": drift.largest}


def _require_possible(figures: Mapping[str, Any]) -> None:
    """Raise ForgettingError where the remaining sums are not those of any samples."""
    if figures.get("samples_left") == 0:
        return
    eigenvalue = figures.get("smallest_eigenvalue_over_lambda", 1.0)
    if not eigenvalue >= 1 - max(TOLERANCE, figures.get("rounding_over_lambda", 0.0)):
        raise ForgettingError(
            f"the smallest eigenvalue of what remains is {eigenvalue:.12f} of the ridge, less than 1: "
            "something was subtracted that had not been added"
        )


def _residual(figures: Mapping[str, Any]) -> str:
    """Return the remaining risk in one sentence."""
    if figures.get("from_traces"):
        return "None: the statistics are whole numbers, and equal those of a stream without the samples."
    text = "None beyond rounding: the statistics equal those of a stream without the samples"
    if figures.get("from_stored_statistics"):
        return f"{text}."
    if not (compared := figures.get("features_compared", 0)):
        return f"{text}, provided that features are still those that were learned, which is not recorded."
    drift = figures["feature_drift"]
    return f"{text}; the features of {compared} differ by at most {drift:.1e} from those that were learned."


def _sound(error: float, count: int) -> dict[str, Any]:
    """Return figures; raise ForgettingError for an error too large: such a share is not exact."""
    if not error <= TOLERANCE:
        raise ForgettingError(
            f"features derived twice differ by {error:.1e}, more than {TOLERANCE:.0e}",
            hint="set precision: 32-true and threads: 1, or accept another guarantee",
        )
    return {"rederived": count, "rederivation_error": error}
