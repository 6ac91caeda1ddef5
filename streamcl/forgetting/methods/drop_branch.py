"""Exact erasure from a learner with a trained branch: the branch is dropped whole, sums are subtracted."""

from __future__ import annotations

from dataclasses import replace

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.protocol import Context, DataLocation, ErasureResult

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
        """A branch that can be dropped, and a closed form that can forget once it is gone."""
        drop = context.capabilities.drop_adapted_branch
        if drop is None:
            return NO_BRANCH
        undo = drop()
        try:
            return ClosedFormRemoval().unsupported_reason(request, context)
        finally:
            undo()

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Drop the branch, then subtract; where the subtraction is refused the branch is put back."""
        drop = context.capabilities.drop_adapted_branch
        if drop is None:
            raise ForgettingError(NO_BRANCH)
        undo = drop()
        try:
            evidence = ClosedFormRemoval().erase(request, context)
        except ForgettingError:
            undo()
            raise
        gone = "the adapted branch, which samples in scope had trained, was dropped whole"
        places = tuple(
            DataLocation(place.name, "erased", gone)
            if place.name in {"adapters", "optimizer moments"}
            else place
            for place in evidence.locations
        )
        return replace(evidence, method=self.name, guarantee=self.guarantee, locations=places)
