"""Writes docs/configuration.md, the reference of every option, from the JSON Schema: `make generated`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamcl.config.load import schema

TARGET = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

<!-- Written by docs/write_configuration.py from the JSON Schema; `make generated` writes it anew. -->

A run is one YAML file. `streamcl validate FILE` checks it and shows every fault at once with its place;
`streamcl schema` prints the JSON Schema, which editors use where the file's first line names it:

```yaml
# yaml-language-server: $schema=./streamcl.schema.json
```

- Unknown and duplicate keys, wrong types and impossible values are refused before anything runs.
- A block may be its bare name where all else is left at its default: `learner: ridge`.
- `${NAME}` and `${NAME:-default}` are filled from the environment; write `$${` for a literal `${`.
- A secret (a key named `password`, `secret`, `token`, `api_key` and the like, or a URL with a password) comes
  from the environment: the configuration is copied into the run directory, where it stays `${NAME}`.
- `--set learner.rank=8` overrides one value on the command line; it may be repeated.
- What is effective, defaults included, is saved as `config.yaml` in the run directory.

The column *resume* says what a change means to a run that goes on: **safe** (nothing learned depends on it),
**warn** (it is said aloud, and decides what is learned from here on), or **refuse**.
"""


def reference() -> str:
    """The whole page as Markdown."""
    described = schema()
    blocks = described["$defs"]
    sections = [HEAD, "## The file\n", _table(described, "refuse")]
    for title, name, resume in _blocks(described, blocks, "refuse"):
        block = blocks[name]
        sections += [f"\n## {title}\n", block["description"] + "\n", _table(block, resume)]
    return "\n".join(sections) + "\n"


def _blocks(
    node: dict[str, Any], blocks: dict[str, Any], resume: str, path: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Each block that a property of `node` may be: its heading, its name in the schema, its resume mark."""
    for key, value in node["properties"].items():
        where = f"{path}.{key}" if path else key
        mark = value.get("x-on-resume", resume)
        for name in _references(value):
            kind = _kind(blocks[name])
            yield (f"`{where}`" + (f": `{kind}`" if kind else ""), name, mark)
            yield from _blocks(blocks[name], blocks, mark, where)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        name = node.get("$ref", "").rpartition("/")[2]
        if name and name not in {"Variable", "JsonValue"}:
            yield name
        yield from _references([*node.get("anyOf", ()), *([node["items"]] if "items" in node else ())])


def _kind(block: dict[str, Any]) -> str:
    """What tells the members of a union apart: the value of `name`, or the key that stands in its place."""
    properties = block["properties"]
    if "const" in properties.get("name", {}):
        return f"name: {properties['name']['const']}"
    return next((f"{key}: ..." for key in ("class", "plugin") if key in block.get("required", ())), "")


def _table(block: dict[str, Any], resume: str) -> str:
    rows = ["| option | takes | default | resume | meaning |", "|---|---|---|---|---|"]
    required = block.get("required", ())
    for name, option in block["properties"].items():
        if "const" in option:
            continue
        default = "required" if name in required else _default(option)
        cells = (f"`{name}`", _takes(option), default, _resume(option, resume), option.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else "No further options."


def _default(option: dict[str, Any]) -> str:
    if "default" not in option:
        return ""
    value = option["default"]
    if isinstance(value, dict) and any(True for _ in _references(option)):
        return f"`{value['name']}`" if value.get("name") and "$ref" not in option else "see below"
    return f"`{json.dumps(value)}`"


def _resume(option: dict[str, Any], inherited: str) -> str:
    marks = [part["x-on-resume"] for part in _parts(option) if "x-on-resume" in part]
    return marks[0] if marks else inherited


def _takes(option: dict[str, Any]) -> str:
    """Types with their bounds, without the ${NAME} that may stand anywhere."""
    if any(True for _ in _references(option)):
        words = ["list of blocks" if "items" in option else "block"]
    else:
        words = [_type(part) for part in _parts(option) if "type" in part or "enum" in part]
    words += ["null"] if {"type": "null"} in option.get("anyOf", []) else []
    return ", or ".join(dict.fromkeys(words))


def _parts(option: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield option
    for inner in option.get("anyOf", ()):
        if inner != {"type": "null"}:
            yield from _parts(inner)


def _type(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    names = {"string": "text", "object": "mapping", "boolean": "true or false", "array": "list"}
    return " ".join([names.get(part["type"], part["type"]), *_bounds(part)])


def _bounds(part: dict[str, Any]) -> Iterator[str]:
    low, above, high = part.get("minimum"), part.get("exclusiveMinimum"), part.get("maximum")
    if low is not None and high is not None and high < 10**6:
        yield f"{low} to {high}"
    elif low is not None or above is not None:
        yield f"≥ {low}" if low is not None else f"> {above}"
        if high is not None and high < 10**6:
            yield f"≤ {high}"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
