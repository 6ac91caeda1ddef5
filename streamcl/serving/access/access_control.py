"""Who asks, by the token that a request bears, and whether that role may use the route, and so often."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamcl.serving.access.access_log import AccessEntry, AccessLog
from streamcl.serving.access.rate_limits import TokenBuckets, sender_of
from streamcl.serving.access.tokens import AccessToken, LiveTokens, Role, TokenFile, default_token_file
from streamcl.serving.problems import problem_response
from streamcl.serving.route_table import ROUTES, RouteRule
from streamcl.serving.sent_status import SentStatus

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="streamcl"'}
CALLER, RULE = "streamcl.caller", "streamcl.rule"
"""Keys of the ASGI scope: the Caller of a request, and the RouteRule of its route or None."""
_REQUEST = "streamcl.forget_request"

DEFAULT_RATE = 100.0
"""Requests a second of one token, where others can reach the server; a predictor answers some 50."""
MAX_ADDRESS = 64
WRONG_TOKENS = 10
"""Wrong tokens that an address may send in a minute."""


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """Who may use a server, and how often.

    tokens: the file of tokens. required: a request without one is refused, but for the routes of anyone.
    public_names: hosts that requests may name beside this machine's own. rate: requests a second of one
    token, or of one address without a token; None is no limit. log: the log of accesses; None is none.
    """

    tokens: Path = field(default_factory=lambda: default_token_file().path)
    required: bool = False
    public_names: tuple[str, ...] = ()
    rate: float | None = None
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sends a request. token: None without one. trusted: by the server's address, without a token."""

    token: AccessToken | None = None
    trusted: bool = False

    @property
    def role(self) -> Role | None:
        """The token's role; None without one."""
        return None if self.token is None else self.token.role

    def may(self, rule: RouteRule) -> bool:
        """Return whether the caller may use a route."""
        return self.trusted or self.role in rule.roles


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)


class AccessControl:
    """Answers 401, 403 or 429 to those who may not use a route, before anything of the body is read.

    An answer that is still being sent when its token is revoked ends there.

    Args:
        app: takes what is not refused.
        options: who may use the server, and how often.
        log: takes who asked for what, and how that was answered.
    """

    def __init__(self, app: ASGIApp, *, options: AccessOptions, log: AccessLog | None = None) -> None:
        self._app, self._log, self._required = app, log, options.required
        self._tokens = LiveTokens(TokenFile(options.tokens))
        self._wrong = TokenBuckets(WRONG_TOKENS / 60, WRONG_TOKENS)
        self._rates = None if options.rate is None else TokenBuckets(options.rate, max(1, options.rate))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with its caller in the scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown",))[0][:MAX_ADDRESS]  # a proxy may pass any text on
        secret = sent_token(scope["headers"])
        token = None if secret is None else self._tokens.find(secret)
        caller = scope[CALLER] = Caller(token, trusted=secret is None and not self._required)
        rule = scope[RULE] = rule_of(scope)
        noted = SentStatus(send)
        try:
            if refusal := self._refusal(caller, rule, address, wrong=secret is not None and token is None):
                answer = problem_response(refusal.status, refusal.reason, refusal.headers)
                await answer(scope, receive, noted)
            else:
                await self._app(scope, receive, noted if token is None else self._until_revoked(token, noted))
        finally:
            self._note(scope, address, noted.status)

    def _refusal(
        self, caller: Caller, rule: RouteRule | None, address: str, *, wrong: bool
    ) -> _Refusal | None:
        """Return why a request is refused, or None. Wrong tokens do not stand in the way of a right one."""
        if wrong and (seconds := self._wrong.take(sender_of(address))):
            return _too_many(seconds, "too many wrong tokens came from this address")
        if wrong:
            return _Refusal(401, "the token is not valid", CHALLENGE)
        sender = sender_of(address) if caller.token is None else f"token {caller.token.name}"
        if self._rates is not None and (seconds := self._rates.take(sender)):
            return _too_many(seconds, "too many requests")
        return _forbidden(caller, rule)

    def _until_revoked(self, token: AccessToken, send: Send) -> Send:
        """Return a `send` that ends the body once the token is void, and drops the rest."""
        ended = False

        async def checked(message: Message) -> None:
            nonlocal ended
            if ended:
                return
            if message["type"] == "http.response.body" and token not in self._tokens.current():
                ended, message = True, {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return checked

    def _note(self, scope: Scope, address: str, status: int) -> None:
        caller, rule = scope[CALLER], scope[RULE]
        if self._log is None or (rule is not None and None in rule.roles and caller.token is None):
            return  # probes of the health say nothing about anybody
        name = None if caller.token is None else caller.token.name
        route = "none" if rule is None else f"{rule.method} {rule.path}"
        self._log.note(AccessEntry(name, caller.role, address, route, status), scope.get(_REQUEST))


def caller_of(request: Request) -> Caller:
    """Return who has sent a request that was passed on."""
    found: Caller = request.scope[CALLER]
    return found


def note_forget_request(request: Request, name: str) -> None:
    """Let the log of accesses name the request to forget that an HTTP request was about, by its id."""
    request.scope[_REQUEST] = name


def sent_token(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return the token of a request, None where it has none: a Bearer token, or the password of Basic."""
    given = next((value for name, value in headers if name == b"authorization"), None)
    if given is None:
        return None
    scheme, _, value = given.decode("latin-1").strip().partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def rule_of(scope: Scope) -> RouteRule | None:
    """Return the rule of the route that a request goes to; None where there is no such route."""
    return next((rule for route, rule in _COMPILED if route.matches(scope)[0] is Match.FULL), None)


def _forbidden(caller: Caller, rule: RouteRule | None) -> _Refusal | None:
    """Return why a caller may not use a route. Without a token nobody learns which routes exist."""
    if caller.trusted or (rule is not None and caller.may(rule)):
        return None
    if caller.role is None:
        return _Refusal(401, "send a token as 'Authorization: Bearer TOKEN'", CHALLENGE)
    if rule is None:
        return None
    needed = " or ".join(rule.role_names)
    return _Refusal(403, f"the role {caller.role} may not do this; needed is {needed}")


def _too_many(seconds: float, reason: str) -> _Refusal:
    return _Refusal(429, reason, {"Retry-After": str(math.ceil(seconds))})


async def _unused(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for an endpoint."""


_COMPILED = tuple((Route(rule.path, _unused, methods=[rule.method]), rule) for rule in ROUTES)
