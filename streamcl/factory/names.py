"""Lists of the names that a configuration can use."""

from __future__ import annotations

from collections.abc import Iterable

from streamcl.errors import ConfigError
from streamcl.nn.build import backbone_names
from streamcl.registry import DETECTORS, SINKS, SOURCES
from streams.download import fetch


def known_names(kind: str) -> Iterable[tuple[str, str]]:
    """Return the names that a configuration can use for a kind, each with a note."""
    match kind:
        case "sources":
            return [(name, "") for name in SOURCES.names()]
        case "detectors":
            return [(name, "") for name in DETECTORS.names()]
        case "sinks":
            return [(name, "") for name in SINKS.names()]
        case "learners":
            return [
                ("ridge_lora", "the default: a ridge head and LoRA adapters"),
                ("online_lora", "the paper's"),
                ("ridge", "closed form, no gradients"),
                ("mixed_privacy", "core samples train all, users a linear part"),
                ("cohort_adapters", "an adapter for each tenant, subject or range of offsets, dropped whole"),
                ("ncm", "closed form: nearest class mean"),
                ("slda", "closed form: streaming discriminant analysis"),
                ("frozen_linear", "baseline: linear head by SGD"),
                ("naive_lora", "baseline: LoRA without a remedy"),
                ("er", "baseline: rehearsal of raw images"),
                ("der_pp", "baseline: rehearsal of images and logits"),
                ("ewc_pp", "baseline: elastic weights"),
            ]
        case "data":
            return [(entry.name, f"{entry.kind}: {entry.note}") for entry in fetch.catalogue()]
        case "backbones":
            return [(name, "") for name in backbone_names()]
    raise ConfigError(f"there is no list of {kind!r}")
