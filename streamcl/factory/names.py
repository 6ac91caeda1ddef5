"""Lists of the names that a configuration can use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamcl.errors import ConfigError
from streamcl.nn.build import backbone_names
from streamcl.registry import DETECTORS, FORGETTING, LEARNERS, SINKS, SOURCES
from streamcl.sources.delivery import DATASET_GUARANTEE, DeliveryGuarantee
from streams.download import fetch


def known_names(kind: str) -> Iterable[tuple[str, str]]:
    """Return the names that a configuration can use for a kind, each with a note."""
    registries = {"detectors": DETECTORS, "sinks": SINKS, "forgetting": FORGETTING}
    if kind in registries:
        return [(name, "") for name in registries[kind].names()]
    match kind:
        case "sources":
            return [(name, _delivery(name)) for name in SOURCES.names()]
        case "learners":
            factories: dict[str, Any] = {name: LEARNERS.find(name) for name in LEARNERS.built_in}
            options = {name: each.options.model_fields["name"] for name, each in factories.items()}
            return [(n, str(options[n].description) if n in options else "") for n in LEARNERS.names()]
        case "data":
            return [(entry.name, f"{entry.kind}: {entry.note}") for entry in fetch.CATALOGUE]
        case "backbones":
            return [(name, "") for name in backbone_names()]
    raise ConfigError(f"there is no list of {kind!r}")


def _delivery(name: str) -> str:
    """Return how often a source delivers each record, as its callable declares; data sets are read again."""
    try:
        declared = getattr(SOURCES.find(name), "delivery", None)
    except ConfigError as error:  # of a plugin that does not load
        return str(error)
    if isinstance(declared, DeliveryGuarantee):
        return str(declared)
    return str(DATASET_GUARANTEE) if name in SOURCES.built_in else "said at the start of a run"
