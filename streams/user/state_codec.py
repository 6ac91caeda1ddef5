"""Encodes users' own states as the plain data that checkpoints hold, and decodes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcl.errors import SourceError

TAG = "__type__"


def to_plain(value: Any, path: str = "state_dict()") -> Any:
    """Return a copy made of dicts with string keys, lists, numpy arrays, str, int, float, bool and None.

    Tuples, bytes and dicts with other keys are tagged, so that `from_plain` brings them back; numpy scalars
    become Python numbers. Raise SourceError, naming the place, for anything else.

    >>> from_plain(to_plain({1: (2, b"x")}))
    {1: (2, b'x')}
    """
    if isinstance(value, dict):
        return _plain_dict(value, path)
    if isinstance(value, list | tuple):
        items = [to_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TAG: "tuple", "items": items}
    if isinstance(value, bytes):
        return {TAG: "bytes", "hex": value.hex()}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    raise SourceError(
        f"the source's {path} is a {type(value).__name__}, which no checkpoint can hold",
        hint="keep numbers, strings, bytes, numpy arrays, and lists, tuples and dicts of those",
    )


def _plain_dict(value: dict[Any, Any], path: str) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value) and TAG not in value:
        return {key: to_plain(inner, f"{path}[{key!r}]") for key, inner in value.items()}
    pairs = [[to_plain(key, path), to_plain(inner, f"{path}[{key!r}]")] for key, inner in value.items()]
    return {TAG: "dict", "items": pairs}


def from_plain(value: Any) -> Any:
    """Return a copy of the value that `to_plain` encoded."""
    if isinstance(value, dict):
        return _from_plain_dict(value)
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _from_plain_dict(value: dict[str, Any]) -> Any:
    kind = value.get(TAG)
    if kind == "tuple":
        return tuple(from_plain(item) for item in value["items"])
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    if kind == "dict":
        return {from_plain(key): from_plain(inner) for key, inner in value["items"]}
    return {key: from_plain(inner) for key, inner in value.items()}
