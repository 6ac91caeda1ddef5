"""Parses the lines of JSON Lines files, of which a crash may have left any in pieces."""

from __future__ import annotations

import json
from typing import Any


def json_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object in the text; None where it is none.

    >>> json_object(b'{"offset": 3}'), json_object(b'{"offs')
    ({'offset': 3}, None)
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
