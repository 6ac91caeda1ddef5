"""Erasure for mixed privacy (arXiv 2012.13431): one user's share of the linear part, or all users at once."""

from __future__ import annotations

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import (
    SHARED_PARTS,
    Context,
    DataLocation,
    ErasureResult,
    not_affected,
    required,
)
from streamcl.requests.terms import Guarantee

NO_USERS = "this learner has no weights of users alone"


class AllUsers:
    """Every user at once: their weights and sums are set to zero, however many there were.

    Exact, because no user's sample has ever reached anything else.
    """

    name = "all_users"
    guarantee: Guarantee = "exact"
    cost = 10

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless it is for all users, of a learner with weights that only users train."""
        if not request.all_users:
            return "the request is not for every user"
        return NO_USERS if context.capabilities.users is None else None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:  # noqa: ARG002 - the signature is given
        """Set them to zero, in constant time."""
        required(context.capabilities.users, NO_USERS).forget_users()
        return ErasureResult(
            self.name,
            self.guarantee,
            "None: the learner is the one that no user's sample ever reached.",
            _locations("they and all their sums are zero"),
        )


class MixedPrivacy:
    """One user: the sums stored of them are subtracted, and a Newton step leads to what remains.

    No sample is needed. The published weights have noise; the receipt says how many nats of the samples they
    can hold at most. Where samples can be retrieved, `closed_form` derives them again, which checks the
    stored sums, and is called exact.
    """

    name = "mixed_privacy"
    guarantee: Guarantee = "bounded"
    cost = 20

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Return a reason unless the subject's sums hold every sample in scope, and there is noise."""
        users = context.capabilities.users
        if users is None:
            return NO_USERS
        if request.kind != "subject" or request.subject is None:
            return "sums are stored of subjects, not of single samples or classes"
        if not (count := users.user_sample_count(request.subject)):
            return "no sums of this subject are stored"
        if count != context.scope.learned:
            return f"{context.scope.learned} of its samples were learned, {count} of them into its own sums"
        return None if users.noise else "the users' weights have no noise (learner.users.noise is 0)"

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Subtract, step, and bound how far the weights are from those of what remains."""
        figures = required(context.capabilities.users, NO_USERS).forget_subject(str(request.subject))
        bound = figures["bound_nats"]
        if bound is None:
            raise ForgettingError("the bound is not finite: the users' weights have no noise")
        return ErasureResult(
            self.name,
            self.guarantee,
            f"At most {bound:.1e} nats of the samples are in the users' weights as they are used now, with "
            "noise; weights used before the erasure are not covered.",
            _locations("its sums were subtracted, and the weights are the minimiser of the rest"),
            figures,
        )


def _locations(explanation: str) -> tuple[DataLocation, ...]:
    return (
        DataLocation("user weights", "erased", explanation),
        *not_affected(("head statistics", *SHARED_PARTS), "samples of users never reach it"),
        *not_affected(("hard buffer",), "this learner keeps no samples"),
    )
