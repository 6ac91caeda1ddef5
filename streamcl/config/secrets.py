"""Secrets among the options: recognised by their names or as passwords in URLs, and kept out of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from streamcl.config.document import Document, KeyPath, Problem

WITHHELD = "***"

_NAMES = re.compile(r"(^|[_.-])(password|passwd|secret|token|(api|access|secret)_?key)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]+(?=@)")


def secrets_in(data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the paths of secrets: texts and numbers by their last key, and URLs with a password.

    >>> list(secrets_in({"url": "redis://:pw@host", "args": {"password": "pw", "token_size": 3}}))
    [('url',), ('args', 'password')]
    """
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from secrets_in(value, (*path, key))
    elif path and _is_secret(path[-1], data):
        yield path


def _is_secret(key: str | int, value: Any) -> bool:
    if isinstance(value, str) and _IN_URL.search(value):
        return True
    return _is_name(key) and isinstance(value, str | int | float) and value not in {"", True, False}


def masked(data: Any) -> Any:
    """Return the data with every secret replaced, so that two that differ in secrets alone are equal.

    >>> masked({"password": None, "keys": ["a"], "url": "redis://user:pw@host/0"})
    {'password': '***', 'keys': ['a'], 'url': 'redis://***@host/0'}
    """
    if isinstance(data, dict):
        return {key: WITHHELD if _is_name(key) else masked(value) for key, value in data.items()}
    if isinstance(data, list):
        return [masked(value) for value in data]
    return _IN_URL.sub(WITHHELD, data) if isinstance(data, str) else data


def plain_secrets(document: Document) -> list[Problem]:
    """Return a problem for each secret that stands in the file itself: it would be copied with it."""
    return [
        Problem(
            document.place(path),
            f"{'.'.join(map(str, path))} is a secret; set an environment variable and write ${{NAME}}",
        )
        for path in secrets_in(document.data)
        if path not in document.variables and document.place(path).source
    ]


def _is_name(key: str | int) -> bool:
    return isinstance(key, str) and _NAMES.search(key) is not None
