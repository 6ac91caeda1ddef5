"""Requests on their way: checked, written as JSON for the ledger, and read back from it."""

from __future__ import annotations

import base64
import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Guarantee, Kind, Relearn, Sample, Selector

NAME_LIMIT = 1000  # letters of an id, a subject or a class
FIELDS = (
    *("id", "key", "kind", "offset", "label", "subject", "all_users", "ids", "id_pattern", "domain"),
    *("offsets", "samples", "deadline", "guarantee", "method", "relearn"),
)


def build_request(
    *,
    label: str | None = None,
    subject: str | None = None,
    all_users: bool = False,
    ids: Sequence[str] = (),
    id_pattern: str | None = None,
    domain: str | None = None,
    offsets: Sequence[int] | None = None,
    offset: int = 0,
    id: str | None = None,  # noqa: A002 - the field's name everywhere
    key: str | None = None,
    samples: Sequence[Sample] = (),
    deadline: float | None = None,
    guarantee: Guarantee | None = None,
    method: str = "auto",
    relearn: Relearn = "deny",
) -> ForgetRequest:
    """A checked request; its kind follows from what it names.

    A class alone is kind "class", a subject alone or all users "subject"; ids, a pattern of ids, a domain or
    an offset range make it "samples", narrowed down by a subject where one is named too. offset: carried out
    before the first batch at or past it; 0 is at once. Raises ForgettingError with the reason.
    """
    narrow = bool(ids or samples) or any(each is not None for each in (id_pattern, domain, offsets))
    kind: Kind = (
        "class"
        if label is not None
        else "subject"
        if all_users or (subject is not None and not narrow)
        else "samples"
    )
    body = {
        "id": id or f"request-{secrets.token_hex(8)}",
        "key": key,
        "kind": kind,
        "offset": offset,
        "label": label,
        "subject": subject,
        "all_users": all_users,
        "ids": [*dict.fromkeys([*ids, *(sample.id for sample in samples)])],
        "id_pattern": id_pattern,
        "domain": domain,
        "offsets": None if offsets is None else list(offsets),
        "samples": [_packed(sample) for sample in samples],
        "deadline": deadline,
        "guarantee": guarantee,
        "method": method,
        "relearn": relearn,
    }
    return request_from_body(body)


def check_request(request: ForgetRequest) -> ForgetRequest:
    """A request that a source yields, checked like any other. Raises ForgettingError."""
    return request_from_body(request_to_body(request))


def request_to_body(request: ForgetRequest) -> dict[str, Any]:
    """The request as a JSON object."""
    selector = request.selector
    return {
        "id": request.id,
        "key": request.key,
        "kind": request.kind,
        "offset": request.offset,
        "label": request.label,
        "subject": request.subject if request.kind != "samples" else selector.subject,
        "all_users": request.all_users,
        "ids": list(selector.ids),
        "id_pattern": selector.id_pattern,
        "domain": selector.domain,
        "offsets": None if selector.offsets is None else list(selector.offsets),
        "samples": [_packed(sample) for sample in request.samples],
        "deadline": request.deadline,
        "guarantee": request.guarantee,
        "method": request.method,
        "relearn": request.relearn,
    }


def request_from_body(body: Mapping[str, Any]) -> ForgetRequest:
    """The request in a JSON object. Raises ForgettingError, saying what is wrong with which field."""
    _check_fields(body)
    kind, given = body["kind"], {name for name in _CHOOSING if body.get(name) not in (None, [], False)}
    if wrong := _mismatch(kind, given):
        raise ForgettingError(
            wrong, hint="name one class, one subject, or ids, their pattern, a domain or offsets"
        )
    return ForgetRequest(
        id=body["id"],
        kind=kind,
        offset=body.get("offset") or 0,
        label=body.get("label"),
        subject=body.get("subject") if kind == "subject" else None,
        all_users=bool(body.get("all_users")),
        selector=_selector(body) if kind == "samples" else Selector(),
        samples=tuple(_unpacked(packed) for packed in body.get("samples") or ()),
        key=body.get("key"),
        deadline=body.get("deadline"),
        guarantee=body.get("guarantee"),
        method=body.get("method") or "auto",
        relearn=body.get("relearn") or "deny",
    )


def _selector(body: Mapping[str, Any]) -> Selector:
    span = body.get("offsets")
    return Selector(
        ids=tuple(body.get("ids") or ()),
        id_pattern=body.get("id_pattern"),
        subject=body.get("subject"),
        domain=body.get("domain"),
        offsets=(span[0], span[1]) if span else None,
    )


_CHOOSING = ("label", "subject", "all_users", "ids", "id_pattern", "domain", "offsets")


def _mismatch(kind: Any, given: set[str]) -> str | None:
    match kind:
        case "class" if given != {"label"}:
            return f"a request of kind class names a class and nothing else, this one names {_list(given)}"
        case "subject" if given not in ({"subject"}, {"all_users"}):
            return (
                "a request of kind subject names a subject, or all users, and nothing else, "
                f"this one names {_list(given)}"
            )
        case "samples" if given & {"label", "all_users"} or not given:
            chosen = "ids, an id_pattern, a subject, a domain or offsets"
            return f"a request of kind samples names {chosen}, not {_list(given)}"
        case "class" | "subject" | "samples":
            return None
    return f"kind is {kind!r:.50}, expected one of {', '.join(get_args(Kind))}"


def _list(given: set[str]) -> str:
    return ", ".join(sorted(given)) or "nothing"


def _check_fields(body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, 1)
            raise ForgettingError(
                f"a request has no field {name!r:.50}", hint=f"did you mean {near[0]}?" if near else None
            )
    for name, sound, expected in _RULES:
        value = body.get(name)
        if not sound(value):
            raise ForgettingError(f"a request's {name!r} must be {expected}, found {type(value).__name__}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= NAME_LIMIT and "\0" not in value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(map(_is_count, value))
        and value[0] < value[1]
    )


def _is_instant(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_RULES: tuple[tuple[str, Any, str], ...] = (
    ("id", _is_name, f"a string of 1 to {NAME_LIMIT} letters"),
    ("key", lambda v: v is None or _is_name(v), "a string, or left out"),
    ("label", lambda v: v is None or _is_name(v), "a class's name, or left out"),
    ("subject", lambda v: v is None or _is_name(v), "a subject's name, or left out"),
    ("all_users", lambda v: v is None or isinstance(v, bool), "true or false, or left out"),
    ("domain", lambda v: v is None or _is_name(v), "a domain's name, or left out"),
    ("ids", lambda v: v is None or (isinstance(v, list | tuple) and all(map(_is_name, v))), "a list of ids"),
    ("id_pattern", lambda v: v is None or _is_name(v), "letters of an id with * and ?, or left out"),
    ("offset", lambda v: v is None or _is_count(v), "an offset, 0 or more"),
    ("offsets", lambda v: v is None or _is_span(v), "two offsets, the first before the second"),
    ("deadline", lambda v: v is None or _is_instant(v), "seconds since the epoch, or left out"),
    (
        "guarantee",
        lambda v: v is None or v in get_args(Guarantee),
        f"one of {', '.join(get_args(Guarantee))}",
    ),
    ("relearn", lambda v: v is None or v in get_args(Relearn), "deny or allow"),
    ("method", lambda v: v is None or _is_name(v), "a method's name, or auto"),
    ("samples", lambda v: v is None or isinstance(v, list | tuple), "a list of samples"),
)


def _packed(sample: Sample) -> dict[str, Any]:
    pixels = base64.b64encode(np.ascontiguousarray(sample.image).tobytes()).decode()
    fields = ("id", "label", "subject", "domain", "privacy")
    return {"image": pixels, "shape": list(sample.image.shape), **{f: getattr(sample, f) for f in fields}}


def _unpacked(packed: Any) -> Sample:
    try:
        fields = dict(packed)
        shape = fields.pop("shape")
        raw = np.frombuffer(base64.b64decode(fields.pop("image"), validate=True), np.uint8)
        return Sample(image=raw.reshape(shape), **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ForgettingError(f"a sample that the request carries cannot be read: {error}") from error
