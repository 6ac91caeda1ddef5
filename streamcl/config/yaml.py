"""Reads one YAML file strictly: plain data, the location of each value, and all faults at once."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from streamcl.config.document import (
    Document,
    KeyPath,
    Problem,
    SourceLocation,
    Variable,
    config_error,
    shortened,
)

FILE_LIMIT = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_DIGITS = 64

_CORE = "tag:yaml.org,2002:"
_PLAIN = "plain"
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "null": (type(None),),
}
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VARIABLE = re.compile(r"\$(\$)?\{((?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>[^{}]*))?\})?")
# Inside [ ] and { } a bare ${NAME} would end at its brace, so the parser is given these in place of braces.
_BRACED = re.compile(r"\$\{[^{}\n]*\}")
_HIDE = str.maketrans("{}", "\uf8f0\uf8f1")
_SHOW = str.maketrans("\uf8f0\uf8f1", "{}")

# PyYAML types plain scalars by YAML 1.1, so they are only marked as plain here. libyaml is ten times as fast.
_Loader: Any = type(
    "_Loader",
    (getattr(yaml, "CSafeLoader", yaml.SafeLoader),),
    {"yaml_implicit_resolvers": {None: [(_PLAIN, re.compile(""))]}},
)


def read_yaml(path: Path, environment: Mapping[str, str]) -> Document:
    """Parse a file of at most 1 MiB of UTF-8; see `parse_yaml`. Raise ConfigError where it cannot be read."""
    start = SourceLocation(0, 1, 1, str(path))
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise config_error([Problem(start, "not a regular file")])
        if found.st_size > FILE_LIMIT:
            raise config_error(
                [Problem(start, f"{found.st_size} bytes; a configuration has at most {FILE_LIMIT}")]
            )
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise config_error([Problem(start, f"cannot be read: {reason}")]) from error
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise config_error([Problem(_at_end_of(before, str(path)), message)]) from error
    return parse_yaml(text, str(path), environment)


def parse_yaml(text: str, source: str, environment: Mapping[str, str], number: int = 0) -> Document:
    """Return the one document in `text`, by the rules of YAML 1.2's core schema, and all faults in it.

    `1e-4` is a float; `on`, `yes` and dates are text. Refused, each with its location: duplicate keys, keys
    that are not text, tags beyond the core ones, a second document, more than 32 levels or 20,000 values
    (those of an alias count each time). `${NAME}` and `${NAME:-default}` in values are replaced from
    `environment`; a plain value is typed after that; `$${` stands for a literal `${`. Where the text as a
    whole cannot be parsed, `broken` holds ().

    Args:
        text: YAML.
        source: a file, or an override, that messages name.
        environment: values of variables.
        number: of an override, from 1, whose messages have no line and column; 0 for a file.
    """
    return _Converter(source, environment, number).convert(text)


def plain_value(text: str) -> str | int | float | bool | None:
    """Return a plain scalar's value in YAML 1.2's core schema. Raise ValueError for an absurdly long number.

    >>> [plain_value(text) for text in ("1e-4", "0x1F", "on", "~")]
    [0.0001, 31, 'on', None]
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    integer = _INT.fullmatch(text)
    if not integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters; if it is text, quote it")
    if integer:
        return int(text, 0 if text[:2] in {"0o", "0x"} else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Converter:
    """Converts the nodes of a text to a document."""

    def __init__(self, source: str, environment: Mapping[str, str], number: int) -> None:
        self.source, self.environment, self.number = source, environment, number
        self.document, self.shown, self.values = Document(), _SHOW, 0

    def convert(self, text: str) -> Document:
        self.document.places[()] = self._at(0, 0)
        if odd := _UNPRINTABLE.search(text):
            place = self._placed(_at_end_of(text[: odd.start()], self.source))
            self._note(place, f"the character U+{ord(odd[0]):04X} is not allowed in YAML")
            self.document.broken.add(())
            return self.document
        try:
            root = yaml.compose(self._without_inner_braces(text), Loader=_Loader)
            self.document.data = None if root is None else self._value(root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark else (0, 0)
            self._note(self._at(line, column), _syntax_message(error, text, line, column))
            self.document.broken.add(())
        return self.document

    def _without_inner_braces(self, text: str) -> str:
        if "\uf8f0" in text or "\uf8f1" in text:
            self.shown = {}
            return text
        return _BRACED.sub(lambda found: found[0].translate(_HIDE), text)

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            limit = (
                f"more than {MAX_VALUES} values"
                if self.values > MAX_VALUES
                else "nested deeper than 32 levels"
            )
            raise yaml.MarkedYAMLError(problem=limit, problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in {_CORE + "seq", _CORE + "map"}:
            return self._refuse_tag(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        for index, item in enumerate(node.value):
            self.document.places[*path, index] = self._start(item)
        return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key_node, value in node.value:
            key = self._key(key_node)
            if key is not None and key in items:
                first = self.document.places[*path, key].line
                self._note(self._start(key_node), f"duplicate key {shortened(key)!r}; first on line {first}")
            elif key is not None:
                self.document.places[*path, key] = self._start(key_node)
                items[key] = self._value(value, (*path, key))
        return items

    def _key(self, node: yaml.Node) -> str | None:
        """Return the key, or None where it is refused."""
        text = str(node.value)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in {_PLAIN, _CORE + "str"}:
            self._note(self._start(node), "a key must be plain text, without a tag")
        elif node.tag == _PLAIN and not _is_text(text):
            self._note(self._start(node), f"key {shortened(text)!r} is not text; quote it")
        else:
            return text.translate(self.shown)
        return None

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        def replaced(found: re.Match[str]) -> str:
            return self._variable(found, path, node)

        written = Variable(node.value.translate(self.shown))
        text, kind = _VARIABLE.sub(replaced, written), node.tag.removeprefix(_CORE)
        if any(found["name"] and not found[1] for found in _VARIABLE.finditer(written)):
            written.is_plain = kind == _PLAIN
            self.document.variables[path] = written
        if kind == "str":
            return text
        if kind != _PLAIN and kind not in _TYPES:
            return self._refuse_tag(node, path)
        try:
            value = plain_value(text)
        except ValueError as error:
            return self._break(path, node, str(error))
        if kind != _PLAIN and type(value) not in _TYPES[kind]:
            return self._break(path, node, f"{shortened(text)!r} is not a !!{kind}")
        return float(value) if kind == "float" and value is not None else value

    def _variable(self, found: re.Match[str], path: KeyPath, node: yaml.Node) -> str:
        if found[1]:
            return found[0][1:]
        name, default = found["name"], found["default"]
        if not name:
            self._break(path, node, "'${' opens ${NAME} or ${NAME:-default}; for the characters write '$${'")
        elif self.environment.get(name) or (default is None and name in self.environment):
            return self.environment[name]
        elif default is None:
            self._break(path, node, f"the environment has no {name}; set it, or write ${{{name}:-default}}")
        return default or ""

    def _at(self, line: int, column: int) -> SourceLocation:
        return self._placed(SourceLocation(0, line + 1, column + 1, self.source))

    def _placed(self, place: SourceLocation) -> SourceLocation:
        # An override is one short text: its own words say where the fault is.
        return SourceLocation(self.number, 0, 0, self.source) if self.number else place

    def _start(self, node: yaml.Node) -> SourceLocation:
        return self._at(node.start_mark.line, node.start_mark.column)

    def _note(self, place: SourceLocation, message: str) -> None:
        self.document.problems.append(Problem(place, message))

    def _break(self, path: KeyPath, node: yaml.Node, message: str) -> None:
        if path not in self.document.broken:  # the first fault of a value says enough
            self.document.broken.add(path)
            self._note(self._start(node), message)

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = "!!" + node.tag.removeprefix(_CORE) if node.tag.startswith(_CORE) else node.tag
        self._break(path, node, f"tag {shortened(tag)!r} refused; a configuration is plain data")


def _at_end_of(text: str, source: str) -> SourceLocation:
    return SourceLocation(0, text.count("\n") + 1, len(text) - text.rfind("\n"), source)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    here = text.split("\n")[line] if line <= text.count("\n") else ""
    if "\t" in here[: len(here) - len(here.lstrip())] or here[column : column + 1] == "\t":
        return "a tab; YAML is indented with spaces"
    message = ", ".join(part for part in (error.context, error.problem) if part)
    return message + ("; quote a ${NAME} that holds a brace or a comma" if "${" in here else "")


def _is_text(text: str) -> bool:
    try:
        return isinstance(plain_value(text), str)
    except ValueError:
        return False
