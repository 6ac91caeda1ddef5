"""Exact erasure of a whole cohort: its own adapter and its own sums are dropped, nothing else changes."""

from __future__ import annotations

from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import Context, DataLocation, ErasureResult, not_affected, required
from streamcl.requests.terms import Guarantee

NO_COHORTS = "this learner has no adapters of cohorts"


class DropCohort:
    """Drops what a cohort alone has taught; no sample is needed, and their number makes no difference.

    Exact under conditions that are checked here against the lineage, which the learner does not write: the
    request names whole cohorts, and as many samples of them were learned as these cohorts' parts hold. Where
    one was learned elsewhere, in the shared part say, or a part learned of others, the numbers differ and it
    is refused. Nor may any cohort have come past the limit: without this one it would have had a part
    of its own (`DropCohortApproximate` is for that).
    """

    name = "drop_cohort"
    guarantee: Guarantee = "exact"
    cost = 10
    residual = "None: what the samples taught was kept apart from everything else, and is gone."

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless whole cohorts are named, their counts match the lineage, all had room."""
        cohorts = context.capabilities.cohorts
        if cohorts is not None and cohorts.over_capacity:
            return "cohorts have come past the limit, and without this one another would have its place"
        return self.unpartitioned_reason(request, context)

    def unpartitioned_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return why the samples in scope are not separate from all others; None where they are."""
        cohorts = context.capabilities.cohorts
        if cohorts is None:
            return NO_COHORTS
        if not (names := cohorts.selected_cohorts(request)):
            return "the request names no whole cohort that has an adapter of its own"
        held = cohorts.sample_count(names)
        if held != context.scope.learned:
            return f"{context.scope.learned} of its samples were learned, {held} by parts of their own"
        return None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Drop the cohorts' parts."""
        cohorts = required(context.capabilities.cohorts, NO_COHORTS)
        figures = cohorts.drop_cohorts(cohorts.selected_cohorts(request))
        gone = "dropped whole; only this cohort had trained it, and nothing was trained on it"
        return ErasureResult(
            self.name,
            self.guarantee,
            self.residual,
            (
                DataLocation(
                    "head statistics", "erased", "the cohort's sums were dropped, the rest solved anew"
                ),
                DataLocation("adapters", "erased", gone),
                DataLocation("optimizer moments", "erased", "dropped with the adapter"),
                *not_affected(("importance",), "there are no importance weights"),
                *not_affected(("hard buffer",), "this learner keeps no samples"),
            ),
            figures,
        )


class DropCohortApproximate(DropCohort):
    """The same where cohorts have come past the limit: nothing of the samples is left, but that shows.

    Approximate, because a stream without the cohort would have given its place to another.
    """

    name = "drop_cohort_approximate"
    guarantee: Guarantee = "approximate"
    residual = (
        "None of what the samples taught. That the cohort was there shows: another that came later has no "
        "adapter, which it would have had."
    )

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless whole cohorts are named and their counts agree with the lineage."""
        return self.unpartitioned_reason(request, context)
