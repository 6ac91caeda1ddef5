"""Exact erasure from a learner with a trained branch: the branch is dropped whole, sums are subtracted."""

from __future__ import annotations

from dataclasses import replace

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.protocol import Context, DataLocation, ErasureResult, required
from streamcl.requests.terms import Guarantee

NO_BRANCH = "this learner has no adapted branch that could be dropped whole"


class DropBranch:
    """For samples that trained the adapters: every weight they moved goes, and their sums are subtracted.

    Exact, because the other branch is a closed form on the frozen backbone, which no gradient reaches. What
    the adapted branch knew of others goes with it; their share in the exact branch stays.
    """

    name = "drop_branch"
    guarantee: Guarantee = "exact"
    cost = 30  # the accuracy that the branch has brought goes with it

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless a branch can be dropped and the closed form can forget once it is gone."""
        drop = context.capabilities.drop_adapted_branch
        if drop is None:
            return NO_BRANCH
        rollback = drop()
        try:
            return ClosedFormRemoval().unsupported_reason(request, context)
        finally:
            rollback()

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Drop the branch, then subtract; where the subtraction is refused the branch stays."""
        rollback = required(context.capabilities.drop_adapted_branch, NO_BRANCH)()
        try:
            result = ClosedFormRemoval().erase(request, context)
        except ForgettingError:
            rollback()
            raise
        gone = "the adapted branch, which samples in scope had trained, was dropped whole"
        locations = tuple(
            DataLocation(each.name, "erased", gone)
            if each.name in {"adapters", "optimizer moments"}
            else each
            for each in result.locations
        )
        return replace(result, method=self.name, guarantee=self.guarantee, locations=locations)
