"""The content of a request as the ledger stores it: a JSON object in canonical form, checked for its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamcl.errors import RefusedRequest
from streamcl.storage.canonical_json import canonical_json

BODY_LIMIT = 256 << 20  # bytes of JSON; a request may carry samples, a gigabyte of them is a mistake


def parsed_fields(body: str) -> dict[str, Any]:
    """Return the fields of a body; of one that is damaged none, which no digest fits."""
    try:
        fields = json.loads(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def canonical_fields(fields: Mapping[str, Any]) -> str:
    """Return the fields in canonical JSON. Raise RefusedRequest where they are not JSON, or too large."""
    try:
        body = canonical_json(dict(fields)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedRequest(f"a request must be a JSON object: {error}") from error
    if len(body) > BODY_LIMIT:
        raise RefusedRequest(f"a request of {len(body)} bytes is larger than the {BODY_LIMIT} allowed")
    return body


def name_in(fields: Mapping[str, Any], field: str) -> str:
    """Return a field that names the request. Raise RefusedRequest where it is no short string."""
    value = fields.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise RefusedRequest(
            f"a request's {field!r} must be a printable string of 1 to 200 characters, found {value!r:.50}"
        )
    return value
