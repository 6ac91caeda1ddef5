"""Selects the method for a request: the strongest guarantee that the request and the learner allow."""

from __future__ import annotations

from collections.abc import Sequence

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import STRENGTH, Context, ForgettingMethod
from streamcl.requests.terms import Guarantee

AUTO = "auto"


def select_method(
    methods: Sequence[ForgettingMethod], request: ForgetRequest, context: Context
) -> tuple[ForgettingMethod, str]:
    """Return the method, and why it and none stronger.

    Of equal guarantees the one of the least cost is taken. Raise ForgettingError, with each method's reason,
    where none can do it with the guarantee that the request asks for.
    """
    named = [method for method in methods if request.method in {AUTO, method.name}]
    if not named:
        known = ", ".join(method.name for method in methods)
        raise ForgettingError("the request names an unknown method", hint=f"known: auto, {known}")
    reasons: dict[str, tuple[Guarantee, str]] = {}
    for method in sorted(named, key=lambda each: (-STRENGTH[each.guarantee], each.cost, each.name)):
        reason = _too_weak(method, request) or method.unsupported_reason(request, context)
        if reason is None:
            strength = STRENGTH[method.guarantee]
            passed = [f"{n}: {why}" for n, (each, why) in reasons.items() if STRENGTH[each] > strength]
            return method, "; ".join(passed) or "no method gives a stronger guarantee"
        reasons[method.name] = (method.guarantee, reason)
    listed = "; ".join(f"{name}: {reason}" for name, (_, reason) in reasons.items())
    wanted = f" with the guarantee {request.guarantee}" if request.guarantee else ""
    raise ForgettingError(f"no method can erase this{wanted}: {listed}")


def _too_weak(method: ForgettingMethod, request: ForgetRequest) -> str | None:
    if request.guarantee is None or STRENGTH[method.guarantee] >= STRENGTH[request.guarantee]:
        return None
    return f"gives no more than {method.guarantee}"
