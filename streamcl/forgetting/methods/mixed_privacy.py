"""Erasure for mixed privacy (arXiv 2012.13431): one user's share of the linear part, or all users at once."""

from __future__ import annotations

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee
from streamcl.forgetting.methods.protocol import Context, DataLocation, ErasureResult

NO_USERS = "this learner has no weights of users alone"


class AllUsers:
    """Every user at once: their weights and sums are set to zero, however many there were.

    Exact, because no user's sample has ever reached anything else.
    """

    name = "all_users"
    guarantee: Guarantee = "exact"
    cost = 10

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """A request for all users, and weights that only users have trained."""
        if not request.all_users:
            return "the request is not for every user"
        return NO_USERS if context.capabilities.users is None else None

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:  # noqa: ARG002 - the signature is given
        """Zero, in constant time."""
        users = context.capabilities.users
        if users is None:
            raise ForgettingError(NO_USERS)
        users.forget_users()
        return ErasureResult(
            self.name,
            self.guarantee,
            "None: the learner is the one that no user's sample ever reached.",
            (_user_weights("they and all their sums are zero"), *_untouched()),
        )


class MixedPrivacy:
    """One user: the sums that were kept of them are taken out, and a Newton step goes to what remains.

    No sample is needed. What is published are weights with noise; the receipt says how many nats of the
    samples they can hold at most. Where samples can be brought back, `closed_form` derives them again, which
    checks what was kept, and is called exact.
    """

    name = "mixed_privacy"
    guarantee: Guarantee = "bounded"
    cost = 20

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:
        """Sums of the subject that hold every sample in scope, and noise: nothing is bounded without."""
        users = context.capabilities.users
        if users is None:
            return NO_USERS
        if request.kind != "subject" or request.subject is None:
            return "sums are kept of subjects, not of single samples or classes"
        if not (kept := users.user_sample_count(request.subject)):
            return "no sums of this subject are kept"
        if kept != context.scope.learned:
            return f"{context.scope.learned} of its samples were learned, {kept} of them into sums of its own"
        return None if users.noise else "the users' weights have no noise (learner.users.noise is 0)"

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:
        """Subtract, step, and compute how far the weights are from those of what remains."""
        users = context.capabilities.users
        if users is None or request.subject is None:
            raise ForgettingError(NO_USERS)
        figures = users.forget_subject(request.subject)
        bound = figures["bound_nats"]
        if bound is None:
            raise ForgettingError("the bound is not finite: the users' weights have no noise")
        return ErasureResult(
            self.name,
            self.guarantee,
            f"At most {bound:.1e} nats of the samples are in the users' weights as they are used now, with "
            "noise; weights used before the erasure are not covered.",
            (
                _user_weights("its sums were taken out, and the weights are the minimiser of the rest"),
                *_untouched(),
            ),
            figures,
        )


def _user_weights(what: str) -> DataLocation:
    return DataLocation("user weights", "erased", what)


def _untouched() -> tuple[DataLocation, ...]:
    alone = "samples of users never reach it"
    names = ("head statistics", "adapters", "optimizer moments", "importance")
    return (
        *(DataLocation(name, "not affected", alone) for name in names),
        DataLocation("hard buffer", "not affected", "this learner keeps no samples"),
    )
