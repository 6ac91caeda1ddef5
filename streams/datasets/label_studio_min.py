"""Converts Label Studio's JSON-MIN, one entry an annotation, to the tasks of its complete JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.errors import ConfigError, SourceError

USUAL_NAME = "choice"
"""The name of the choices in the templates of Label Studio for images."""


def is_min(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the entries of an export are JSON-MIN: none has data of its own, all have an id."""
    return bool(entries) and all("data" not in each and "id" in each for each in entries)


def complete_tasks(
    name: str, entries: Sequence[Mapping[str, Any]], choices: str | None
) -> list[dict[str, Any]]:
    """Return the entries as tasks of the complete JSON; those with the same id are one task.

    Args:
        name: of the file, for messages.
        entries: of the export.
        choices: the name of the choices in the labelling interface; None is the usual one.

    Raises:
        ConfigError: no entry has the choices.
        SourceError: an entry's choices have another form.
    """
    control = choices or USUAL_NAME
    if not any(control in each for each in entries):
        keys = ", ".join(sorted({key for each in entries for key in each}))[:200]
        raise ConfigError(f"{name} has no choices {control!r} among {keys}", hint="name them: choices: ...")
    tasks: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        data = {key: value for key, value in entry.items() if key not in {"id", control}}
        task = tasks.setdefault(str(entry["id"]), {"id": entry["id"], "data": data, "annotations": []})
        chosen = _chosen(name, entry, control)
        result = {"type": "choices", "from_name": control, "value": {"choices": chosen}}
        dates = {key: entry.get(key) for key in ("created_at", "updated_at")}
        task["annotations"].append({"result": [result] if chosen else [], **dates})
    return list(tasks.values())


def _chosen(name: str, entry: Mapping[str, Any], control: str) -> list[str]:
    """Return the choices of an entry: one is a text, several are a mapping with a list."""
    value = entry.get(control)
    if isinstance(value, str):
        return [value] if value else []
    listed = value.get("choices", value) if isinstance(value, dict) else value
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise SourceError(
            f"{name}: {control!r} of task {entry['id']} is neither a text nor a list of choices"
        )
    return listed
