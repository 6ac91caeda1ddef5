"""Reads, checks, compares and writes a run's configuration; its options are in `streamcl.config_models`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from streamcl.config_models.run import RunConfig, remember_origin
from streamcl.config_problems import problems_of
from streamcl.yaml_file import Document, KeyPath, Place, Problem, parse_yaml, read_yaml, refusal, resolve

__all__ = [
    "Difference",
    "RunConfig",
    "Severity",
    "config_from_dict",
    "differences",
    "dump_config",
    "fingerprint",
    "load_config",
    "schema",
]

# Only double quotes carry these unharmed.
_BREAKS = set("\n\r\x85\u2028\u2029\ufeff")
_ANNOTATIONS = {"title", "description", "default", "examples", "x-on-resume"}

Severity: TypeAlias = Literal["safe", "warn", "refuse"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One option that differs between the run that was saved and the one that would resume it.

    path: dotted, as in `--set`. severity: "safe" to resume, "warn" (what is learned from here on changes), or
    "refuse" (the saved state belongs to the old value). None stands for an option that is not there.
    """

    path: str
    old: Any
    new: Any
    severity: Severity

    def __str__(self) -> str:
        return f"{self.path}: {json.dumps(self.old)} -> {json.dumps(self.new)} ({self.severity})"


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> RunConfig:
    """The configuration in a YAML file, with overrides such as "learner.lora.rank=8" on top.

    `environment` (the process's own by default) fills `${NAME}`. Raises ConfigError whose `problems` tell
    every fault found, as `file.yaml:LINE:COLUMN: message` or `--set a.b=c: message`.
    """
    file = Path(path)
    variables = os.environ if environment is None else environment
    document = read_yaml(file, variables)
    if () in document.broken:
        raise refusal(document.problems)
    if not isinstance(document.data, dict):
        document.problems.append(Problem(document.place(()), "the file must hold a mapping of options"))
        raise refusal(document.problems)
    for number, override in enumerate(overrides, 1):
        _override(document, override, variables, number)
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem)[:100].lstrip(".-")
    document.data.setdefault("name", stem or "run")
    return _checked(document)


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The configuration in a nested mapping with the YAML's keys. Raises ConfigError with every fault."""
    return _checked(Document(dict(data)))


def dump_config(config: RunConfig) -> str:
    """The whole configuration, defaults included, as YAML; loading it gives an equal one.

    Values that came from the environment are written out as they are.
    """
    text = yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    return str(text)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the YAML file, for editors. It accepts every file that loads."""
    described = RunConfig.model_json_schema(by_alias=True)
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_lenient(described),
        "title": "streamcl run",
    }
    described["$defs"]["Variable"] = {
        "type": "string",
        "pattern": r"\$\{[A-Za-z_]\w*(:-[^{}]*)?\}",
        "description": "A value from the environment: ${NAME} or ${NAME:-default}.",
    }
    return described


def fingerprint(config: RunConfig) -> str:
    """sha256 (hex) of all that must not change when a run is resumed.

    Two configurations have the same one exactly when `differences` finds nothing that is to be refused.
    """
    leaves = _leaves(config).items()
    deciding = {
        path: value for path, (value, severity) in leaves if severity == "refuse" and value is not None
    }
    canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(old: RunConfig, new: RunConfig) -> list[Difference]:
    """What a resumed run would do otherwise than the saved one, in the order of the options."""
    before, after = _leaves(old), _leaves(new)
    found = []
    for path in {**before, **after}:
        was, severity = before.get(path, (None, "safe"))
        now, new_severity = after.get(path, (None, severity))
        severity = new_severity if path in after else severity
        if json.dumps(was, sort_keys=True) != json.dumps(now, sort_keys=True):
            found.append(Difference(path, was, now, severity))
    return found


def _checked(document: Document) -> RunConfig:
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        raise refusal(document.problems + problems_of(error, RunConfig, document)) from None
    if document.problems:
        raise refusal(document.problems)
    remember_origin(config, document)
    return config


def _override(document: Document, text: str, environment: Mapping[str, str], number: int) -> None:
    """Set one "a.b=c" in the document, or note why that is impossible."""
    place = Place(number, 0, 0, f"--set {text}")
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


def _assign(document: Document, keys: Sequence[str], value: Any, place: Place) -> KeyPath:
    """Put `value` at `keys`, making mappings on the way; returns the path. IndexError outside a list."""
    holder, path = document.data, list[str | int]()
    for key in keys[:-1]:
        path.append(_key(holder, key))
        inner = holder[path[-1]] if _holds(holder, path[-1]) else None
        if not isinstance(inner, dict | list):
            # A bare name stands for its block: "learner: ridge" takes "learner.relative_lambda=1" as well.
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
    raise IndexError(f"'{key}' is no index into a list of {len(holder)}")


def _holds(holder: dict[str, Any] | list[Any], key: str | int) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def _put(holder: Any, key: str | int, value: Any) -> None:
    if isinstance(holder, list) and key == len(holder):
        holder.append(value)
    else:
        holder[key] = value


def _plain(value: BaseModel) -> dict[str, Any]:
    """A model as the YAML's plain data."""
    dumped: dict[str, Any] = value.model_dump(mode="python", by_alias=True)
    return dumped


def _leaves(config: RunConfig) -> dict[str, tuple[Any, Severity]]:
    """Every option by its dotted path, in order, with what its change means to a resumed run."""
    return {path: (value, severity) for path, value, severity in _walk(config, "", "refuse")}


def _walk(model: BaseModel, prefix: str, inherited: Severity) -> Iterator[tuple[str, Any, Severity]]:
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        severity: Any = extra.get("x-on-resume", inherited)
        value, path = getattr(model, name), prefix + (field.alias or name)
        if isinstance(value, BaseModel):
            yield from _walk(value, path + ".", severity)
        elif isinstance(value, list):
            yield path, [_plain(item) if isinstance(item, BaseModel) else item for item in value], severity
        else:
            yield path, value, severity


def _lenient(node: Any) -> Any:
    """Let ${NAME} stand where a number, a switch or a choice is asked for, and a bare name for its block."""
    if isinstance(node, list):
        return [_lenient(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: value if key in {"default", "examples"} else _lenient(value) for key, value in node.items()}
    if "oneOf" in inner and all("$ref" in item for item in inner["oneOf"]):
        inner["anyOf"] = [*inner.pop("oneOf"), {"type": "string"}]
    if str(inner.get("type")) in {"integer", "number", "boolean"} or "enum" in inner or "pattern" in inner:
        kept = {
            key: inner.pop(key) for key in ("title", "description", "default", "examples") if key in inner
        }
        return {**kept, "anyOf": [inner, {"$ref": "#/$defs/Variable"}]}
    return inner


class _Dumper(yaml.SafeDumper):
    """Writes text so that this package's reader, which follows YAML 1.2, reads text again."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(resolve(text), str) and not _BREAKS & set(text)
    except ValueError:
        plain = False
    escaped = text.replace("${", "$${")
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=None if plain else '"')


_Dumper.add_representer(str, _text)
