"""The request that reaches nothing: nothing was learned of it, which is exact, and it stays that way."""

from __future__ import annotations

from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import SHARED_PARTS, Context, ErasureResult, not_affected
from streamcl.requests.terms import Guarantee

NO_OP_RESIDUAL = (
    "None beyond what the receipt of the earlier request names: nothing of it was learned since then."
)


class NoOp:
    """Erases nothing where nothing was learned.

    A subject or an id that never came is no mistake: its owner may ask in advance, and its tombstone keeps
    it out. A class of which nothing has passed and that was not forgotten before is one (a typing error).
    """

    name = "no_op"
    guarantee: Guarantee = "exact"
    cost = 0

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason where samples in scope were learned, or no such class has passed."""
        if context.scope.learned or (request.kind == "class" and request.label in context.learner.classes):
            return "samples of it were learned"
        if request.kind == "class" and not context.scope.passed and not context.scope.forgotten_before:
            return "no class of that name has been seen"
        return None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:  # noqa: ARG002 - the signature is given
        """Return that nothing was there; change nothing."""
        before = context.scope.forgotten_before
        return ErasureResult(
            self.name,
            self.guarantee,
            NO_OP_RESIDUAL if before else "None: nothing of it was learned.",
            not_affected(("head statistics", *SHARED_PARTS, "hard buffer"), "no sample in scope was learned"),
        )
