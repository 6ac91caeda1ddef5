"""Applies overrides such as "learner.lora.rank=8" to a parsed YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.config.document import Document, KeyPath, Problem, SourceLocation, has_key
from streamcl.config.yaml import parse_yaml


def override(document: Document, text: str, environment: Mapping[str, str], number: int) -> None:
    """Apply one "a.b=c" to the document, or add a problem to it."""
    place = SourceLocation(number, 0, 0, f"--set {text}")
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or "" in keys:
        document.problems.append(Problem(place, "expected a.b=value"))
        return
    parsed = parse_yaml(value, place.source, environment, number)
    document.problems.extend(parsed.problems)
    try:
        path = _assign(document, keys, parsed.data, place)
    except IndexError as error:
        document.problems.append(Problem(place, str(error)))
        return
    document.broken = {other for other in document.broken if other[: len(path)] != path}
    document.broken.update((*path, *inner) for inner in parsed.broken)
    document.variables = {at: each for at, each in document.variables.items() if at[: len(path)] != path}
    document.variables.update({(*path, *inner): each for inner, each in parsed.variables.items()})


def _assign(document: Document, keys: Sequence[str], value: Any, place: SourceLocation) -> KeyPath:
    """Set `value` at `keys`, create missing mappings, return the path. Raise IndexError outside a list."""
    holder, path = document.data, list[str | int]()
    for key in keys[:-1]:
        path.append(_key(holder, key))
        inner = holder[path[-1]] if has_key(holder, path[-1]) else None
        if not isinstance(inner, dict | list):
            # A bare name stands for its block: "learner: ridge" takes "learner.trace_ridge=1" as well.
            inner = {} if inner is None else {"name": inner}
            _put(holder, path[-1], inner)
            document.move(tuple(path), place)
        holder = inner
    path.append(_key(holder, keys[-1]))
    _put(holder, path[-1], value)
    document.move(tuple(path), place)
    return tuple(path)


def _key(holder: dict[str, Any] | list[Any], key: str) -> str | int:
    if isinstance(holder, dict):
        return key
    if key.isascii() and key.isdecimal() and len(key) < 9 and int(key) <= len(holder):
        return int(key)
    raise IndexError(f"'{key}' is not an index into a list of {len(holder)}")


def _put(holder: Any, key: str | int, value: Any) -> None:
    if isinstance(holder, list) and key == len(holder):
        holder.append(value)
    else:
        holder[key] = value
