"""Validates a document, and converts errors to problems with a location, the value and the nearest name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from streamcl.config.document import (
    MAX_PROBLEMS,
    Document,
    KeyPath,
    Problem,
    config_error,
    has_key,
    shortened,
)
from streamcl.errors import nearest

M = TypeVar("M", bound=BaseModel)


def checked_options(document: Document, root: type[M]) -> M:
    """Return the options in a document. Raise ConfigError with every fault, those of its reading too."""
    try:
        options = root.model_validate(document.data)
    except ValidationError as error:
        raise config_error(document.problems + problems_of(error, root, document)) from None
    if document.problems:
        raise config_error(document.problems)
    return options


def problems_of(error: ValidationError, root: type[BaseModel], document: Document) -> list[Problem]:
    """Return a problem for every error, except those that follow from values which could not be read."""
    found = [_located(details, root, document.data) for details in error.errors(include_url=False)]
    reported = [
        (document.place(spot.path), spot)
        for spot in found
        if not any(_related(spot.path, broken) for broken in document.broken)
    ]
    reported.sort(key=lambda pair: pair[0])
    # Nearest names are slow to find, and no more than the first problems are ever printed.
    return [
        Problem(place, spot.message() if index < MAX_PROBLEMS else spot.brief())
        for index, (place, spot) in enumerate(reported)
    ]


def shown(value: Any) -> str:
    """Return a value as a message quotes it, never longer than a line.

    >>> shown("cpu"), shown(True), shown({"rank": 4})
    ("the text 'cpu'", 'true', 'a mapping')
    """
    if isinstance(value, str):
        return f"the text '{shortened(value)}'"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return format(value, ".15g")
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class _Spot:
    """One of pydantic's errors, its path in the YAML, and the models at that path."""

    details: ErrorDetails
    path: KeyPath
    owner: type[BaseModel]
    members: Mapping[str, type[BaseModel]]

    def message(self) -> str:
        """Return the message: the value found, the value expected, and the nearest valid name."""
        label = shortened(".".join(map(str, self.path)))
        if self.details["type"] == "extra_forbidden":
            key, where = str(self.path[-1]), ".".join(map(str, self.path[:-1]))
            found = f"unknown key '{shortened(key)}'{where and f' in {where}'}"
            return f"{found}; {_nearest(key, _keys(self.owner))}"
        if self.details["type"] == "missing":
            return f"'{label}' is missing"
        return f"{label}: {self._fault()}" if label else self._fault()

    def brief(self) -> str:
        """Return pydantic's message."""
        return f"{'.'.join(map(str, self.path))}: {self.details['msg']}"

    def _fault(self) -> str:
        kind, value, message = self.details["type"], self.details["input"], self.details["msg"]
        if kind == "union_tag_invalid":
            tag = str(self.details["ctx"]["tag"])
            return f"unknown name '{shortened(tag)}'; {_nearest(tag, self.members)}"
        if kind == "union_tag_not_found":
            return f"must be a mapping with a 'name'; found {shown(value)}; {_nearest('', self.members)}"
        if kind in {"literal_error", "string_pattern_mismatch"}:
            return f"unknown value; found {shown(value)}; {_nearest(str(value), self._examples())}"
        if kind in {"model_type", "model_attributes_type", "dict_type"}:
            return f"must be a mapping; found {shown(value)}"
        if kind == "bool_type":
            return f"must be true or false; found {shown(value)}"
        subject, should, rest = message.partition(" should ")
        return f"must {rest}; found {shown(value)}" if should else f"{subject[:1].lower()}{subject[1:]}"

    def _examples(self) -> list[str]:
        """Return valid values: those of a literal, or the examples of a pattern."""
        field = _field(self.owner, self.path[-1]) if self.path else None
        return _choices(field.annotation) or list(map(str, field.examples or ())) if field else []


def _located(details: ErrorDetails, root: type[BaseModel], data: Any) -> _Spot:
    """Return the error with its path in the YAML: pydantic's location also names members of unions."""
    path: list[str | int] = []
    members: Mapping[str, type[BaseModel]] = {"": root}
    owner = root
    for part in details["loc"]:
        if len(members) > 1 and part in members:
            members = {"": members[str(part)]}
        elif isinstance(part, int) and members:
            path.append(part)
        elif members:
            owner = next(iter(members.values()))
            path.append(part)
            field = _field(owner, part)
            members = _members(field.annotation) if field else {}
        elif has_key(_at(data, path), part):
            path.append(part)
    if details["type"] == "union_tag_invalid" and has_key(_at(data, path), "name"):
        path.append("name")
    return _Spot(details, tuple(path), owner, members)


def _field(model: type[BaseModel], key: str | int) -> FieldInfo | None:
    fields = model.model_fields
    return next((field for name, field in fields.items() if (field.alias or name) == key), None)


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _members(annotation: Any, tag: str = "") -> dict[str, type[BaseModel]]:
    """Return the models in a type, by their tags."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {tag: annotation}
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        tags = [mark.tag for mark in inner[1:] if isinstance(mark, Tag)]
        return _members(inner[0], tags[0] if tags else tag)
    return {name: model for part in inner for name, model in _members(part, tag).items()}


def _choices(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation) if isinstance(choice, str)]


def _at(data: Any, path: Iterable[str | int]) -> Any:
    for key in path:
        if not has_key(data, key):
            return None
        data = data[key]
    return data


def _related(path: KeyPath, broken: KeyPath) -> bool:
    """Return whether one path contains the other: a fault there may follow from the unread value."""
    shorter = min(len(path), len(broken))
    return path[:shorter] == broken[:shorter]


def _nearest(word: str, choices: Iterable[str]) -> str:
    return nearest(word.lower(), choices, "expected one of")
