"""Drops the row of a class and purges stored samples; reports what stays in shared weights."""

from __future__ import annotations

from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import (
    CANNOT_DROP,
    SHARED_PARTS,
    Context,
    DataLocation,
    ErasureResult,
    drop_class,
    knows_class,
    purge,
    shared_weights,
)
from streamcl.requests.terms import Guarantee


class HeadOnly:
    """For learners with shared weights: the class's row and raw samples go, the shared weights stay.

    The weakest of all methods: no claim is made about what gradients left in the shared weights.
    """

    name = "head_only"
    guarantee: Guarantee = "approximate"
    cost = 40

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason where the class cannot be dropped, or statistics hold the samples."""
        able = context.capabilities
        if request.kind == "class" and able.drop_class is None:
            return CANNOT_DROP
        if not knows_class(request, context):
            return "no class of that name was learned"
        if context.scope.learned and (able.statistics is not None or able.cohorts is not None):
            return "its sums hold the samples, and dropping a name would leave them there"
        return None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Drop the class and purge the stored samples."""
        touched = shared_weights(context)
        head = _location("head statistics", touched)
        if drop_class(request, context):
            head = DataLocation("head statistics", "erased", "its row is gone")
        return ErasureResult(
            self.name,
            self.guarantee,
            _residual(touched),
            (head, *(_location(name, touched) for name in SHARED_PARTS), *purge(request, context)),
            {"shared_weights": len(touched)},
        )


def _location(name: str, touched: tuple[str, ...]) -> DataLocation:
    if touched:
        return DataLocation(
            name, "remains", "gradients of samples in scope are in it, and it was not repaired"
        )
    return DataLocation(name, "not affected", "no sample in scope has trained it")


def _residual(touched: tuple[str, ...]) -> str:
    if not touched:
        return "None known: no shared weight has been trained on the samples."
    return (
        f"Gradients of the samples remain in shared weights that were not repaired ({', '.join(touched)}); "
        "whoever holds the weights may find traces of them."
    )
