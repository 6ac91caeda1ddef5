"""A canonical form of JSON: sorted keys, no spaces, ASCII; equal values give equal bytes and hashes.

Manifests, requests and fingerprints have it. What strangers verify is in that of RFC 8785 (see `hash_chain`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Return `value` in canonical form. Raise TypeError or ValueError for what JSON lacks, NaN included.

    >>> canonical_json({"b": [1, 2.5], "a": "é"})
    b'{"a":"\\\\u00e9","b":[1,2.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_of_json(value: Any) -> str:
    """Return the sha256 of the canonical form, in hexadecimal. Raise as `canonical_json` does."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
