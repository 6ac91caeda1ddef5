"""Takes away what names a class and what is kept of samples, and says what stays in shared weights."""

from __future__ import annotations

from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.methods.closed_form import purge
from streamcl.forgetting.methods.drop_cohort import CohortPartitioned
from streamcl.forgetting.methods.protocol import (
    ClassRemovable,
    Context,
    DataLocation,
    ErasureResult,
    RemovableStatistics,
    knows,
    shared_weights,
)


class HeadOnly:
    """For learners with shared weights: the class's row and raw samples go, the shared weights stay.

    The weakest of all methods: no claim is made about what gradients left in the shared weights.
    """

    name = "head_rows"
    guarantee: Guarantee = "approximate"
    cost = 40

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """A class needs a learner that can drop it."""
        if request.kind == "class" and not isinstance(context.learner, ClassRemovable):
            return "this learner cannot drop a class"
        if not knows(request, context):
            return "no class of that name was learned"
        if isinstance(context.learner, RemovableStatistics | CohortPartitioned) and context.scope.learned:
            return "its sums hold the samples, and dropping a name would leave them there"
        return None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Drop the class, purge the kept samples."""
        learner, touched = context.learner, shared_weights(context)
        dropped = request.kind == "class" and request.label in learner.classes
        if dropped:
            assert isinstance(learner, ClassRemovable)
            learner.drop_class(str(request.label))
        purged = purge(request, context)
        head = (
            DataLocation("head statistics", "erased", "its row is gone")
            if dropped
            else _state("head statistics", touched)
        )
        return ErasureResult(
            self.name,
            self.guarantee,
            _residual(touched),
            (
                head,
                *(_state(name, touched) for name in ("adapters", "optimizer moments", "importance")),
                DataLocation(
                    "hard buffer", "erased" if purged else "not affected", f"{purged} samples were in it"
                ),
            ),
            {"shared_weights": len(touched)},
        )


def _state(name: str, touched: tuple[str, ...]) -> DataLocation:
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
