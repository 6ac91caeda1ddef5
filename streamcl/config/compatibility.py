"""Differences between two configurations, and whether a run may be resumed with them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from streamcl.config.document import KeyPath
from streamcl.config.options.run import RunConfig
from streamcl.config.secrets import masked, secret_variables
from streamcl.storage.canonical_json import sha256_of_json

Severity: TypeAlias = Literal["safe", "warn", "refuse"]
Leaf: TypeAlias = tuple[Any, Severity]


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


def fingerprint(config: RunConfig) -> str:
    """Return the sha256 (hex) of all options that must not change when a run is resumed.

    It is equal for two configurations exactly where `differences` finds nothing to refuse.
    """
    leaves = _leaves(config, secret_variables(config.variables)).items()
    return sha256_of_json(
        {path: value for path, (value, severity) in leaves if severity == "refuse" and value is not None}
    )


def differences(old: RunConfig, new: RunConfig) -> list[Difference]:
    """Return the options in which a resumed run differs from the saved one, in the order of the options."""
    hidden = secret_variables(old.variables) | secret_variables(new.variables)
    before, after = _leaves(old, hidden), _leaves(new, hidden)
    found = []
    for path in {**before, **after}:
        was, severity = before.get(path, (None, "safe"))
        now, new_severity = after.get(path, (None, severity))
        severity = new_severity if path in after else severity
        if json.dumps(was, sort_keys=True) != json.dumps(now, sort_keys=True):
            found.append(Difference(path, was, now, severity))
    return found


def _leaves(
    model: BaseModel,
    hidden: Collection[KeyPath],
    at: KeyPath = (),
    inherited: Severity = "refuse",
) -> dict[str, Leaf]:
    """Return every option by its dotted path, in order, with the severity of a change of it; no secrets."""
    found: dict[str, Leaf] = {}
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        severity: Any = extra.get("x-on-resume", inherited)
        value, path = getattr(model, name), (*at, field.alias or name)
        if isinstance(value, BaseModel):
            found |= _leaves(value, hidden, path, severity)
        else:
            plain = to_jsonable_python(value, by_alias=True)
            found[".".join(map(str, path))] = (masked(plain, hidden, path), severity)
    return found
