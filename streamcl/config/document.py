"""A parsed configuration: its data, the location of each value, and the problems found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from streamcl.errors import ConfigError

MAX_PROBLEMS = 100
MAX_QUOTED = 60

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """The origin of a value: a line and column of a file (from 1), or an override, which has neither.

    Locations are ordered: the file from the top (number 0), then the overrides in their order.
    """

    number: int
    line: int
    column: int
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault and its location; prints as `file.yaml:LINE:COLUMN: message`."""

    place: SourceLocation
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place.source else self.message


class Variable(str):
    """A value as it is written, with its ${NAME}. is_plain: whether it is unquoted, and so typed."""

    is_plain: bool = True


@dataclass(slots=True)
class Document:
    """The contents of a YAML text.

    places: location of every value by its path of keys and indices; that of a mapping's value is its key's.
    broken: paths of values that could not be read, each with a problem of its own; their data is None.
    variables: values that came from the environment, by their paths.
    """

    data: Any = None
    places: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)
    variables: dict[KeyPath, Variable] = field(default_factory=dict)

    def place(self, path: KeyPath) -> SourceLocation:
        """Return the location of the value at `path`, or of the innermost known value that contains it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return SourceLocation(0, 0, 0, "")

    def move(self, path: KeyPath, place: SourceLocation) -> None:
        """Set the location of the value at `path`, and of everything in it."""
        self.places = {at: old for at, old in self.places.items() if at[: len(path)] != path}
        self.places[path] = place


def config_error(problems: list[Problem]) -> ConfigError:
    """Return one error with all problems, ordered by location, each once."""
    ordered = sorted(set(problems))
    lines = [str(problem) for problem in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"{ordered[MAX_PROBLEMS].place}: and {len(ordered) - MAX_PROBLEMS} more problems")
    return ConfigError("\n".join(lines), problems=tuple(lines))


def has_key(data: Any, key: str | int) -> bool:
    """Return whether a mapping has the key, or a list the index."""
    if isinstance(data, Mapping):
        return key in data
    return isinstance(data, list) and isinstance(key, int) and 0 <= key < len(data)


def shortened(text: str) -> str:
    """Return the text as messages quote it: of at most 60 characters."""
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "..."
