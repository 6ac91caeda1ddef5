"""Reads, checks and writes a run's configuration; its options are in `streamcl.config.options`."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from streamcl.config.document import Document, KeyPath, Problem, Variable, config_error, has_key
from streamcl.config.messages import checked_options
from streamcl.config.options.run import RunConfig, remember_origin
from streamcl.config.overrides import override
from streamcl.config.secrets import MASK, plain_secrets, secret_variables, secrets_in
from streamcl.config.yaml import plain_value, read_yaml

__all__ = ["RunConfig", "config_from_dict", "dump_config", "load_config", "schema"]

_OUTER = ("title", "description", "default", "examples")
# Only double quotes carry these unharmed.
_BREAKS = set("\n\r\x85\u2028\u2029\ufeff")


def load_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> RunConfig:
    """Return the configuration in a YAML file, with overrides such as "learner.lora.rank=8" on top.

    `environment` (the process's own by default) fills `${NAME}`. Raise ConfigError whose `problems` list
    every fault found, as `file.yaml:LINE:COLUMN: message` or `--set a.b=c: message`.
    """
    file = Path(path)
    variables = os.environ if environment is None else environment
    document = read_yaml(file, variables)
    if () in document.broken:
        raise config_error(document.problems)
    if not isinstance(document.data, dict):
        document.problems.append(Problem(document.place(()), "the file must hold a mapping of options"))
        raise config_error(document.problems)
    for number, text in enumerate(overrides, 1):
        override(document, text, variables, number)
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem)[:100].lstrip(".-")
    document.data.setdefault("name", stem or "run")
    return _checked(document)


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """Return the configuration in a nested mapping with the YAML's keys. Raise ConfigError with every fault.

    >>> config = config_from_dict({"source": "demo_digits", "learner": {"name": "ridge"}})
    >>> config.source.name, config.learner.name, config.batch.size
    ('demo_digits', 'ridge', None)
    >>> config_from_dict({"source": "demo_digits", "bacth": 8})
    Traceback (most recent call last):
    streamcl.errors.ConfigError: unknown key 'bacth'; did you mean 'batch'?
    """
    return _checked(Document(dict(data)))


def dump_config(config: RunConfig) -> str:
    """Return the whole configuration, defaults included, as YAML; loading it gives an equal one.

    Values that came from the environment are written out as they are, but for secrets and for what a
    variable with the name of a secret is part of: these stay variables. A secret that Python code has given
    is withheld.
    """
    plain = config.model_dump(by_alias=True)
    named = (path for path in secret_variables(config.variables) if _has_text(plain, path))
    for path in {*secrets_in(plain), *named}:
        holder: Any = reduce(operator.getitem, path[:-1], plain)  # type: ignore[arg-type]
        holder[path[-1]] = config.variables.get(path, Variable(MASK))
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31))


def _has_text(data: Any, path: KeyPath) -> bool:
    """Return whether there is a text or a number at that path."""
    for key in path:
        if not has_key(data, key):
            return False
        data = data[key]
    return isinstance(data, str | int | float)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the YAML file. It accepts every file that loads."""
    described: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_lenient(RunConfig.model_json_schema(by_alias=True)),
        "title": "streamcl run",
    }
    described["$defs"]["Variable"] = {
        "type": "string",
        "pattern": r"\$\{[A-Za-z_]\w*(:-[^{}]*)?\}",
        "description": "A value from the environment: ${NAME} or ${NAME:-default}.",
    }
    return described


def _checked(document: Document) -> RunConfig:
    document.problems.extend(plain_secrets(document))
    config = checked_options(document, RunConfig)
    remember_origin(config, document)
    return config


def _lenient(node: Any) -> Any:
    """Return the schema with ${NAME} allowed for a number, boolean or choice, and a name for its block."""
    if isinstance(node, list):
        return [_lenient(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {key: value if key in {"default", "examples"} else _lenient(value) for key, value in node.items()}
    if "oneOf" in inner and all("$ref" in item for item in inner["oneOf"]):
        inner["anyOf"] = [*inner.pop("oneOf"), {"type": "string"}]
    if str(inner.get("type")) in {"integer", "number", "boolean"} or "enum" in inner or "pattern" in inner:
        outer = {key: inner.pop(key) for key in _OUTER if key in inner}
        return {**outer, "anyOf": [inner, {"$ref": "#/$defs/Variable"}]}
    return inner


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Represent a mapping, whose keys are read as they stand."""
        keyed = {_Key(key) if type(key) is str else key: value for key, value in mapping.items()}
        return super().represent_mapping(tag, keyed, flow_style)


class _Key(str):
    """A key of a mapping, in which no variable is looked for."""

    __slots__ = ()


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(plain_value(text), str) and not _BREAKS & set(text)
    except ValueError:
        plain = False
    escaped = text if isinstance(text, _Key) else text.replace("${", "$${")
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(escaped), style=None if plain else '"')


def _variable(dumper: _Dumper, text: Variable) -> yaml.ScalarNode:
    # What an environment lacks is then missing, so that a command that does not connect needs no secret.
    optional = re.sub(r"(?<!\$)\$\{(\w+)\}", r"${\1:-}", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", optional, style=None if text.is_plain else '"')


_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Key, _text)
_Dumper.add_representer(Variable, _variable)
