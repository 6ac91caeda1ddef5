"""Reads one YAML file strictly: plain data, where each value stands, and every fault found on the way."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from streamcl.config.document import MAX_PROBLEMS, Document, KeyPath, Problem, SourceLocation, refusal
from streamcl.config.yaml_scalars import CORE, is_scalar_tag, resolve_as, resolve_scalar, short

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000

# libyaml reads a megabyte of events in a quarter of a second; the pure parser needs ten.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BRACED = re.compile(r"\$\{[^{}\n]*\}")
# Inside [ ] and { } a bare ${NAME} would end at its brace, so the parser sees these in place of braces.
_STAND_INS = {"\uf8f0", "\uf8f1"}
_HIDE = str.maketrans("{}", "\uf8f0\uf8f1")
_SHOW = str.maketrans("\uf8f0\uf8f1", "{}")
_VARIABLE = re.compile(r"\$(\$)?\{((?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>[^{}]*))?\})?")


def read_yaml(path: Path, environment: Mapping[str, str]) -> Document:
    """Parse a file of at most 1 MiB of UTF-8; see `parse_yaml`. Raises ConfigError if it cannot."""
    start = SourceLocation(0, 1, 1, str(path))
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise refusal([Problem(start, "not a regular file")])
        if found.st_size > MAX_BYTES:
            raise refusal([Problem(start, f"{found.st_size} bytes; a configuration has at most {MAX_BYTES}")])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal([Problem(start, f"cannot be read: {reason}")]) from error
    return parse_yaml(_decoded(raw, str(path)), str(path), environment)


def parse_yaml(text: str, source: str, environment: Mapping[str, str], number: int = 0) -> Document:
    """The one document in `text`, by the rules of YAML 1.2's core schema, and every fault in it.

    `1e-4` is a float; `on`, `yes` and dates are text. Refused, each with its place: duplicate keys, keys that
    are not text, anchors and aliases, tags beyond the core ones, a second document, more than 32 levels or
    20,000 values. `${NAME}` and `${NAME:-default}` in values are replaced from `environment`; a plain value
    is typed after that; `$${` stands for a literal `${`.
    """
    return _Reader(text, source, environment, number).read()


class _UnreadableError(Exception):
    """Ends the reading of a text at once; the problem is already noted."""


class _Reader:
    """Builds a document from parser events, so that depth and size are bounded before anything is built."""

    def __init__(self, text: str, source: str, environment: Mapping[str, str], number: int) -> None:
        self.text, self.source, self.environment, self.number = text, source, environment, number
        self.document = Document()
        self.values = 0
        self.shown = _SHOW
        self.room = MAX_BYTES
        self.events: Iterator[Any] = iter(())

    def read(self) -> Document:
        """The document, with `broken` holding () where the text as a whole makes no sense."""
        self.document.places[()] = self._at(0, 0)
        try:
            self._check_characters()
            self.events = iter(yaml.parse(self._without_inner_braces(), Loader=_Loader))
            self.document.data = self._only_document()
        except _UnreadableError:
            self.document.broken.add(())
        except yaml.MarkedYAMLError as error:
            self.document.broken.add(())
            self.document.problems.append(self._syntax_problem(error))
        return self.document

    def _without_inner_braces(self) -> str:
        if _STAND_INS & set(self.text):
            self.shown = {}
            return self.text
        return _BRACED.sub(lambda found: found[0].translate(_HIDE), self.text)

    def _check_characters(self) -> None:
        found = _UNPRINTABLE.search(self.text)
        if found:
            before = self.text[: found.start()]
            place = self._at(before.count("\n"), len(before) - before.rfind("\n") - 1)
            raise self._unreadable(place, f"the character U+{ord(found[0]):04X} is not allowed in YAML")

    def _only_document(self) -> Any:
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        data = self._node(next(self.events), ())
        next(self.events)
        more = next(self.events)
        if not isinstance(more, yaml.StreamEndEvent):
            raise self._unreadable(self._start(more), "a second document begins; one file holds one")
        return data

    def _node(self, event: Any, path: KeyPath) -> Any:
        self._bound(event, len(path))
        if isinstance(event, yaml.AliasEvent):
            self._break(path, event, f"alias '*{event.anchor}' refused; write the value out")
            return None
        if event.anchor:
            self._break(path, event, f"anchor '&{event.anchor}' refused; write values out")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, path, "seq")
            return self._sequence(path)
        self._check_tag(event, path, "map")
        return self._mapping(path)

    def _bound(self, event: Any, depth: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._unreadable(self._start(event), f"more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise self._unreadable(self._start(event), f"nested deeper than {MAX_DEPTH} levels")

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            child = (*path, len(items))
            self.document.places[child] = self._start(event)
            items.append(self._node(event, child))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._key(event)
            if key is not None and key in items:
                first = self.document.places[(*path, key)].line
                self._note(self._start(event), f"duplicate key {short(key)}; first on line {first}")
                key = None
            if key is None:
                self._skip(event)
                self._skip(next(self.events))
                continue
            child = (*path, key)
            self.document.places[child] = self._start(event)
            items[key] = self._node(next(self.events), child)
        return items

    def _key(self, event: Any) -> str | None:
        """The key, or None where it was refused."""
        if not isinstance(event, yaml.ScalarEvent) or event.tag or event.anchor:
            self._note(self._start(event), "a key must be plain text, without tag, anchor or alias")
            return None
        try:
            if event.style or isinstance(resolve_scalar(event.value), str):
                return str(event.value).translate(self.shown)
        except ValueError:
            pass
        self._note(self._start(event), f"key {short(event.value)} is not text; quote it")
        return None

    def _skip(self, event: Any) -> None:
        depth = 0
        while True:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Without this bound a skipped "{{{{..." of a megabyte takes libyaml hours.
            self._bound(event, depth)
            if depth == 0:
                return
            event = next(self.events)

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        text = _VARIABLE.sub(
            lambda found: self._variable(found, path, event), event.value.translate(self.shown)
        )
        if not event.tag and event.style:
            return text
        try:
            return text if event.tag == "!" else self._typed(event, text, path)
        except ValueError as error:
            self._break(path, event, str(error))
            return None

    def _typed(self, event: Any, text: str, path: KeyPath) -> Any:
        if not event.tag:
            return resolve_scalar(text)
        if not is_scalar_tag(event.tag):
            self._break(path, event, f"tag {_tag(event.tag)} refused; a configuration is plain data")
            return None
        return resolve_as(event.tag.removeprefix(CORE), text)

    def _variable(self, found: re.Match[str], path: KeyPath, event: Any) -> str:
        if found[1]:
            return found[0][1:]
        name, default = found["name"], found["default"]
        if not name:
            self._break(path, event, "'${' opens ${NAME} or ${NAME:-default}; for the characters write '$${'")
        elif self.environment.get(name) or (default is None and name in self.environment):
            return self._affordable(self.environment[name], event)
        elif default is None:
            self._break(path, event, f"the environment has no {name}; set it, or write ${{{name}:-default}}")
        return default or ""

    def _affordable(self, text: str, event: Any) -> str:
        self.room -= len(text)
        if self.room < 0:
            raise self._unreadable(self._start(event), f"variables add more than {MAX_BYTES} characters")
        return text

    def _check_tag(self, event: Any, path: KeyPath, kind: str) -> None:
        if event.tag and event.tag not in {"!", CORE + kind}:
            self._break(path, event, f"tag {_tag(event.tag)} refused; a configuration is plain data")

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        lines = self.text.split("\n")
        here = lines[line] if line < len(lines) else ""
        message = ", ".join(part for part in (error.context, error.problem) if part)
        if "\t" in here[: len(here) - len(here.lstrip())] or here[column : column + 1] == "\t":
            message = "a tab; YAML is indented with spaces"
        elif "${" in here:
            message += "; quote a ${NAME} that holds a brace or a comma"
        return Problem(self._at(line, column), message)

    def _at(self, line: int, column: int) -> SourceLocation:
        # An override is one short text: its own words say where the fault is.
        line, column = (0, 0) if self.number else (line + 1, column + 1)
        return SourceLocation(self.number, line, column, self.source)

    def _start(self, event: Any) -> SourceLocation:
        return self._at(event.start_mark.line, event.start_mark.column)

    def _note(self, place: SourceLocation, message: str) -> None:
        self.document.problems.append(Problem(place, message))
        if len(self.document.problems) > 10 * MAX_PROBLEMS:
            raise _UnreadableError

    def _break(self, path: KeyPath, event: Any, message: str) -> None:
        self.document.broken.add(path)
        self._note(self._start(event), message)

    def _unreadable(self, place: SourceLocation, message: str) -> _UnreadableError:
        self.document.problems.append(Problem(place, message))
        return _UnreadableError()


def _decoded(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace"))
        place = SourceLocation(0, before.count(b"\n") + 1, column + 1, source)
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise refusal([Problem(place, message)]) from error


def _tag(tag: str) -> str:
    return short("!!" + tag.removeprefix(CORE) if tag.startswith(CORE) else tag)
