"""Lists of the names that a configuration can use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamcl.errors import ConfigError
from streamcl.nn.build import backbone_names
from streamcl.registry import DETECTORS, FORGETTING, LEARNERS, SINKS, SOURCES
from streams.download import fetch


def known_names(kind: str) -> Iterable[tuple[str, str]]:
    """Return the names that a configuration can use for a kind, each with a note."""
    registries = {"sources": SOURCES, "detectors": DETECTORS, "sinks": SINKS, "forgetting": FORGETTING}
    if kind in registries:
        return [(name, "") for name in registries[kind].names()]
    match kind:
        case "learners":
            factories: dict[str, Any] = {name: LEARNERS.find(name) for name in LEARNERS.built_in}
            options = {name: each.options.model_fields["name"] for name, each in factories.items()}
            return [(n, str(options[n].description) if n in options else "") for n in LEARNERS.names()]
        case "data":
            return [(entry.name, f"{entry.kind}: {entry.note}") for entry in fetch.CATALOGUE]
        case "backbones":
            return [(name, "") for name in backbone_names()]
    raise ConfigError(f"there is no list of {kind!r}")
