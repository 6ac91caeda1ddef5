"""The forms of a broker's message: fields with the image's bytes, one JSON envelope, a request to forget."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamcl.errors import BadRecord, ForgettingError, RefusedRequest
from streamcl.events import ForgetRequest
from streams.user.label_records import LABEL_OF, WITHDRAW
from streams.user.labels import to_text

ENVELOPE = "data"
"""The field that holds a whole record as a JSON object."""
NAMES = ("label", "id", "subject", "domain", "privacy")
"""The fields of a record beside its image."""
LABEL_FIELDS = (LABEL_OF, "label", WITHDRAW)
"""The fields of the label of an earlier record."""


def record_of_fields(fields: Mapping[str, bytes], default_id: str) -> Mapping[str, Any] | BadRecord:
    """Return the record in a message's fields: "image" with its bytes, and text; or "data" with an envelope.

    With a field "label_of" it is the label of an earlier record, of the id there; with "withdraw" that label
    is taken back. An empty text is a missing one. Other fields are ignored. A BadRecord is returned, not
    raised.
    """
    if LABEL_OF in fields:
        texts = {name: fields.get(name, b"").decode(errors="replace") for name in LABEL_FIELDS}
        return {name: text or None for name, text in texts.items()}
    if ENVELOPE in fields and "image" not in fields:
        return record_of_json(fields[ENVELOPE], default_id)
    if "image" not in fields:
        return BadRecord("the message has neither a field 'image' nor a field 'data'")
    record: dict[str, Any] = {"image": fields["image"], "id": default_id}
    for name in NAMES:
        try:
            text = fields.get(name, b"").decode()
        except UnicodeDecodeError:
            return BadRecord(f"the field {name!r} is not UTF-8")
        if text:
            record[name] = text
    return record


def record_of_json(data: bytes, default_id: str) -> Mapping[str, Any] | BadRecord:
    """Return the record in an envelope: {"image": base64 of its bytes, "label": ..., "id": ..., ...}.

    Or the label of an earlier record: {"label_of": its id, "label": ...}, with "withdraw": true instead of a
    label where it is taken back. Keys beside the image and `NAMES`
    are ignored. A BadRecord is returned, not raised.
    """
    try:
        envelope = _object(data)
        if LABEL_OF in envelope:
            return {name: envelope.get(name) for name in LABEL_FIELDS}
        image = base64.b64decode(envelope["image"], validate=True)
    except KeyError:
        return BadRecord("the envelope has no 'image'")
    except (ValueError, TypeError) as error:
        return BadRecord(f"the envelope cannot be read: {error}")
    names = {name: envelope[name] for name in NAMES if envelope.get(name) is not None}
    return {"id": default_id, **names, "image": image}


def text_id(value: Any) -> str | None:
    """Return the id of a record in one of these forms as text; None of anything that has none.

    >>> text_id({"image": b"", "id": 7}), text_id({"image": b"", "id": []})
    ('7', None)
    """
    with suppress(BadRecord):
        return to_text(value.get("id"), "id") if isinstance(value, Mapping) else None
    return None


def request_of_json(data: bytes, default_key: str) -> ForgetRequest | RefusedRequest:
    """Return the request in a JSON object with the fields of `streamcl.events.ForgetRequest`.

    It takes effect where it is read, so it has no offset; with neither id nor key it has the default key, so
    that it is the same request when it is read again. A RefusedRequest is returned, not raised.
    """
    try:
        fields = _object(data)
        if "offset" in fields:
            return RefusedRequest("a request takes effect where it is read: leave 'offset' out")
        if fields.get("key") is None and "id" not in fields:
            fields["key"] = default_key
        return ForgetRequest.model_validate(fields)
    except (ValueError, TypeError) as error:
        return RefusedRequest(f"the request cannot be read: {error}")
    except ForgettingError as error:
        return RefusedRequest(str(error), hint=error.hint)


def _object(data: bytes) -> dict[str, Any]:
    """Return a JSON object. Raise ValueError where it is none."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")  # noqa: TRY004
    return found
