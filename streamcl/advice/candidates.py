"""Candidates of `streamcl advise`: image sizes x depths x feature blocks, as changes of a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.learners.block_features import evenly_spaced_blocks

SIZE_FACTORS = (0.6, 1.0, 1.4)
"""Image sizes, as multiples of the configured one: 42, 70 and 98 pixels of 70."""
DEPTHS = 6
"""Number of depths, evenly spaced from MIN_DEPTH to the configured one."""
MIN_DEPTH = 2
"""The smallest depth: after one block tokens tell edges and colours, and hardly more."""
BLOCK_COUNTS = (4, 2, 1)
"""Numbers of feature blocks, every second of the last ones: they cost hardly any time, but sums of D^2."""


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """A timm model and its weights, as `backbone.name` and `backbone.weights` of a configuration."""

    name: str
    weights: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frozen backbone of some depth at some image size, and the blocks whose tokens are the features."""

    backbone: BackboneChoice
    image_size: int
    depth: int
    blocks: tuple[int, ...]

    def patch(self, config: RunConfig) -> dict[str, Any]:
        """Return the options in which the candidate differs from a configuration, nested as in its YAML.

        Args:
            config: with a learner that has a ridge head.
        """
        backbone: dict[str, Any] = {"image_size": self.image_size, "depth": self.depth}
        if self.backbone != configured_backbone(config):
            backbone = {"name": self.backbone.name, "weights": self.backbone.weights, **backbone}
        name, blocks = config.learner.name, {"blocks": list(self.blocks)}  # type: ignore[attr-defined]
        inner = blocks if name == "ridge" else {"ridge": blocks}
        return {"backbone": backbone, "learner": {"name": name, **inner}}

    def overrides(self, config: RunConfig) -> list[str]:
        """Return the same options as --set takes them, such as "backbone.depth=7"."""
        return [f"{path}={json.dumps(value)}" for path, value in _leaves(self.patch(config))]


def configured_backbone(config: RunConfig) -> BackboneChoice:
    """Return the backbone that a configuration names."""
    return BackboneChoice(config.backbone.name, config.backbone.weights)


def image_sizes(patch: int, configured: int) -> list[int]:
    """Return the image sizes that are tried, in pixels: multiples of the patch around the configured one.

    >>> image_sizes(14, 70), image_sizes(16, 16)
    ([42, 70, 98], [16, 32])
    """
    sides = {configured, *(max(1, round(factor * configured / patch)) * patch for factor in SIZE_FACTORS)}
    if len(sides) == 1 or configured == patch:
        sides.add(configured + patch)
    return sorted(sides)


def depths(deepest: int) -> list[int]:
    """Return the depths that are tried, ascending.

    >>> depths(11), depths(3), depths(1)
    ([2, 4, 6, 7, 9, 11], [2, 3], [1])
    """
    first = min(MIN_DEPTH, deepest)
    steps = min(DEPTHS, deepest - first + 1)
    return sorted({first + round(step * (deepest - first) / max(steps - 1, 1)) for step in range(steps)})


def block_choices(depth: int) -> list[tuple[int, ...]]:
    """Return the choices of feature blocks of a backbone of that depth; the most first.

    >>> block_choices(11), block_choices(2)
    ([(4, 6, 8, 10), (8, 10), (10,)], [(1,)])
    """
    return list(dict.fromkeys(tuple(evenly_spaced_blocks(depth, count)) for count in BLOCK_COUNTS))


def candidates_of(backbone: BackboneChoice, sizes: Sequence[int], deepest: int) -> list[Candidate]:
    """Return all candidates of one backbone.

    Args:
        backbone: the model and its weights.
        sizes: image sizes, in pixels.
        deepest: the largest depth.
    """
    return [
        Candidate(backbone, size, depth, blocks)
        for size in sizes
        for depth in depths(deepest)
        for blocks in block_choices(depth)
    ]


def _leaves(options: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(options, dict):
        yield path, options
        return
    for key, value in options.items():
        yield from _leaves(value, f"{path}.{key}" if path else key)
