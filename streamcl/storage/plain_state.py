"""States as plain data: packed into JSON and numbered arrays, unpacked bit-equal, and hashed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State
from streamcl.storage.canonical_json import sha256_of_json

Array: TypeAlias = npt.NDArray[Any]

WIDTHS = {"b": "1", "i": "1248", "u": "1248", "f": "248"}
"""Kinds of arrays that a state may hold, with their item sizes in bytes: those of safetensors and NumPy."""


def pack(state: State) -> tuple[Any, dict[str, Array]]:
    """Return a tree for JSON, and the arrays that it refers to by number.

    Values that JSON cannot hold become an object with one key that starts with "$": {"$array": number},
    {"$int": hex} past 64 bits, {"$float": "nan"}, {"$tuple": [...]}. Raise TypeError, naming the place, for
    anything else.

    >>> pack({"classes": ("cat", 2**70), "loss": float("nan")})
    ({'classes': {'$tuple': ['cat', {'$int': '0x400000000000000000'}]}, 'loss': {'$float': 'nan'}}, {})
    """
    arrays: list[Array] = []

    def number(array: Array) -> str:
        arrays.append(array)
        return str(len(arrays) - 1)

    return _pack(state, "", number), {str(index): array for index, array in enumerate(arrays)}


def unpack(tree: Any, arrays: Mapping[str, Array]) -> Any:
    """Return the state that was packed: the same types, values, bits and order of keys.

    Args:
        tree: of `pack`.
        arrays: by name, of any shape.
    """
    if isinstance(tree, list):
        return [unpack(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and (tag := next(iter(tree))) in _READERS:
        return _READERS[tag](tree[tag], arrays)
    return {key.removeprefix("$"): unpack(item, arrays) for key, item in tree.items()}


def state_hash(state: State) -> str:
    """Return the sha256 of a state, arrays by dtype, shape and bytes; the order of keys does not count."""
    return sha256_of_json(_pack(state, "", _digest))


def _pack(value: Any, place: str, leaf: Callable[[Array], Any]) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int() | float():
            return _pack_number(value)
        case list():
            return _pack_items(value, place, leaf)
        case tuple():
            return {"$tuple": _pack_items(value, place, leaf)}
        case np.ndarray():
            return _pack_array(value, place, leaf)
        case dict():
            return _pack_dict(value, place, leaf)
    raise _unknown(value, place)


def _pack_number(value: float) -> Any:
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else {"$int": hex(value)}
    return float(value) if math.isfinite(value) else {"$float": repr(float(value))}


def _pack_items(items: Any, place: str, leaf: Callable[[Array], Any]) -> list[Any]:
    return [_pack(item, f"{place}[{index}]", leaf) for index, item in enumerate(items)]


def _pack_dict(value: dict[Any, Any], place: str, leaf: Callable[[Array], Any]) -> dict[str, Any]:
    packed = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise _unknown(key, f"{place}/{key!r}")
        packed[f"${key}" if key.startswith("$") else key] = _pack(item, f"{place}/{key}", leaf)
    return packed


def _pack_array(value: Array, place: str, leaf: Callable[[Array], Any]) -> dict[str, Any]:
    if str(value.dtype.itemsize) not in WIDTHS.get(value.dtype.kind, ""):
        raise _unknown(value, place)
    return {"$array": leaf(value.astype(value.dtype.newbyteorder("<"), order="C", copy=False))}


def _unknown(value: Any, place: str) -> TypeError:
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return TypeError(
        f"the state holds a {kind} at {place or '/'}; it may hold dicts with string keys, lists, "
        "arrays of numbers, str, int, float, bool and None"
    )


def _digest(array: Array) -> list[Any]:
    return [array.dtype.name, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


_READERS: Mapping[str, Callable[[Any, Mapping[str, Array]], Any]] = {
    "$array": lambda name, arrays: arrays[name],
    "$int": lambda text, _: int(text, 16),
    "$float": lambda text, _: float(text),
    "$tuple": lambda items, arrays: tuple(unpack(item, arrays) for item in items),
}
