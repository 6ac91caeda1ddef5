"""What a text of settings says: its data, where each value stands, and the problems found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from streamcl.errors import ConfigError

MAX_PROBLEMS = 100

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """Where a value came from: a line and column of a file (from 1), or an override, which has neither.

    Places sort as a reader meets them: the file from the top (number 0), then the overrides in order.
    """

    number: int
    line: int
    column: int
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault and where it is; prints as `file.yaml:LINE:COLUMN: message`."""

    place: SourceLocation
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place.source else self.message


@dataclass(slots=True)
class Document:
    """What a YAML text says.

    places: of every value by its path of keys and indices; a mapping's value stands at its key.
    broken: paths whose value could not be read, each with a problem of its own; their data is None.
    """

    data: Any = None
    places: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)

    def place(self, path: KeyPath) -> SourceLocation:
        """The place of the value at `path`, or of the nearest one around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return SourceLocation(0, 0, 0, "")

    def move(self, path: KeyPath, place: SourceLocation) -> None:
        """Say that the value at `path`, with all that is in it, came from `place`."""
        self.places = {at: old for at, old in self.places.items() if at[: len(path)] != path}
        self.places[path] = place


def refusal(problems: list[Problem]) -> ConfigError:
    """One error that tells all problems, in the order in which a reader meets them, each once."""
    ordered = sorted(set(problems))
    lines = [str(problem) for problem in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"{ordered[MAX_PROBLEMS].place}: and {len(ordered) - MAX_PROBLEMS} more problems")
    return ConfigError("\n".join(lines), problems=tuple(lines))
