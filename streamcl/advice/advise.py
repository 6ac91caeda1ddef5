"""Compares candidates on images of a configuration's stream, and recommends one within a budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from streamcl.advice.candidates import BackboneChoice, Candidate, configured_backbone
from streamcl.advice.front import (
    Budget,
    Correct,
    Costs,
    accuracy_error,
    nearest_feasible,
    pareto_front,
    recommend,
    ties_with_best,
)
from streamcl.advice.latency import LEARNED, Latencies
from streamcl.advice.proxies import GRADIENT_SAMPLES
from streamcl.advice.space import Space, Variant, ridge_options
from streamcl.evaluation.throughput import memory_mb
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute
from streamcl.factory.probe import Probe, draw_probe
from streamcl.nn.timm_compat import import_timm

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class AssessedCandidate:
    """A candidate with what it gives and takes.

    correct: bool [n], which of the probe's samples are predicted correctly, each left out. measured: whether
    its latency was measured; else the cost model gives it. patch: the options that differ, nested as in the
    YAML. overrides: the same, as --set takes them. proxies: by name, where they were asked for.
    """

    candidate: Candidate
    costs: Costs
    correct: Correct
    measured: bool
    patch: dict[str, Any]
    overrides: tuple[str, ...]
    proxies: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The standard error of its accuracy."""
        return accuracy_error(self.correct)


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """All candidates of a configuration, compared.

    Attributes:
        assessed: the candidates.
        budget: the limits.
        front: places of the Pareto front, by ascending latency.
        ties: places of those within the budget whose accuracy ties with the best there, itself included.
        chosen: the place of the one to take; None where none is within the budget.
        nearest: the place of the one that exceeds the budget least.
        images: of the probe.
        classes: of the probe.
        rare: classes with too few images, which are left out.
        latency_error: of the cost model, relative, by backbone, on candidates it was not fitted to.
    """

    assessed: tuple[AssessedCandidate, ...]
    budget: Budget
    front: tuple[int, ...]
    ties: tuple[int, ...]
    chosen: int | None
    nearest: int
    images: int
    classes: int
    rare: tuple[str, ...]
    latency_error: float | None

    @property
    def shown(self) -> AssessedCandidate:
        """The candidate to take, or the nearest one where none is within the budget."""
        return self.assessed[self.nearest if self.chosen is None else self.chosen]


def advise(
    variant: Variant,
    budget: Budget,
    *,
    images: int = 512,
    backbones: Sequence[BackboneChoice] = (),
    proxies: bool = False,
) -> Advice:
    """Return all candidates compared on images of the configured stream. Nothing is written.

    Args:
        variant: the configuration with any overrides.
        budget: the limits of the candidate to take.
        images: of the probe, at most.
        backbones: to compare with the configured one.
        proxies: compute zero-shot proxies as well, with gradients of each image size and depth.

    Raises:
        ConfigError: the learner has no ridge head, or the probe is too small for its classes.
        SourceError: the stream cannot be probed, or has too few labels.
    """
    config = variant(())
    ridge_options(config)
    probe = draw_probe(config, images)
    compute = build_compute(config)
    import_timm()
    libraries = 2**20 * memory_mb()  # of Python and the packages, which every run takes as well
    choices = list(dict.fromkeys([configured_backbone(config), *backbones]))
    spaces = [Space(variant, choice, compute) for choice in choices]
    material = _read(probe, spaces, compute.rows)
    assessed, errors = list[AssessedCandidate](), list[float]()
    for space in spaces:
        times = space.latencies(material.samples[: 2 * LEARNED])
        errors += [] if times.error is None else [times.error]
        for candidate in space.candidates:
            made = _assessed(space, candidate, material, times, libraries)
            if proxies:
                made = replace(made, proxies=space.proxies(candidate, material.samples, material.targets))
            assessed.append(made)
    everything = [each.costs for each in assessed]
    ties = ties_with_best(everything, [each.correct for each in assessed], budget)
    return Advice(
        assessed=tuple(assessed),
        budget=budget,
        front=tuple(pareto_front(everything)),
        ties=tuple(ties),
        chosen=recommend(everything, ties),
        nearest=nearest_feasible(everything, budget),
        images=len(material.targets),
        classes=len(probe.classes),
        rare=probe.rare,
        latency_error=max(errors, default=None),
    )


class _Material(NamedTuple):
    """The classes of the probe's samples, int64 [n], the first samples, and the number of classes."""

    targets: Tensor
    samples: list[Sample]
    classes: int


def _assessed(
    space: Space, candidate: Candidate, material: _Material, times: Latencies, libraries: float
) -> AssessedCandidate:
    place = candidate.image_size, candidate.depth
    correct = space.correct(candidate, material.targets)
    memory = space.memory(candidate, libraries, material.classes)
    return AssessedCandidate(
        candidate,
        Costs(float(correct.mean()), times.seconds[place], memory),
        correct,
        measured=place in times.measured,
        patch=candidate.patch(space.config),
        overrides=tuple(candidate.overrides(space.config)),
    )


def _read(probe: Probe, spaces: Sequence[Space], rows: int) -> _Material:
    """Read the probe at every image size."""
    column = {name: place for place, name in enumerate(probe.classes)}
    targets, first = list[int](), list[Sample]()
    sizes = ", ".join(str(size) for size in spaces[0].sizes)
    logger.info("reading %d images of %d classes at %s pixels", len(probe.labels), len(column), sizes)
    for chunk in probe.chunks(rows):
        for space in spaces:
            space.read(chunk)
        targets += [column[str(sample.label)] for sample in chunk]
        first += chunk[: max(0, GRADIENT_SAMPLES - len(first))]
    return _Material(torch.tensor(targets), first, len(column))
