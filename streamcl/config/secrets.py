"""Secrets among the options, kept out of files: known by their names, by those of variables, or in URLs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from streamcl.config.document import Document, KeyPath, Problem

MASK = "***"

_NAMES = re.compile(
    r"(^|[_.-])(password|passwd|passphrase|secret|token|auth|authorization|credentials?|cookie"
    r"|(api|access|secret|private)_?key)$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)")
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


def secret_variables(variables: Mapping[KeyPath, str]) -> frozenset[KeyPath]:
    """Return the paths of the values that come from variables with the name of a secret.

    >>> sorted(secret_variables({("args", "headers"): "Bearer ${HUB_TOKEN}", ("args", "root"): "${DATA}/x"}))
    [('args', 'headers')]
    """
    named = ((path, _VARIABLE.findall(text)) for path, text in variables.items())
    return frozenset(path for path, names in named if any(map(_is_name, names)))


def _is_secret(key: str | int, value: Any) -> bool:
    if isinstance(value, str) and _IN_URL.search(value):
        return True
    return _is_name(key) and isinstance(value, str | int | float) and value not in {"", True, False}


def masked(data: Any, hidden: Collection[KeyPath] = (), path: KeyPath = ()) -> Any:
    """Return the data with every secret replaced, so that two that differ in secrets alone are equal.

    hidden: paths of further secrets. path: that of the data.

    >>> masked({"password": None, "keys": ["a"], "url": "redis://user:pw@host/0"})
    {'password': '***', 'keys': ['a'], 'url': 'redis://***@host/0'}
    """
    if path in hidden:
        return MASK
    if isinstance(data, dict):
        return {
            key: MASK if _is_name(key) else masked(value, hidden, (*path, key)) for key, value in data.items()
        }
    if isinstance(data, list):
        return [masked(value, hidden, (*path, number)) for number, value in enumerate(data)]
    return _IN_URL.sub(MASK, data) if isinstance(data, str) else data


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
