"""The candidates of one backbone: which there are, how accurate they are, and what they take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from streamcl.advice.block_tokens import BackboneSizes, BlockTokens, patch_side
from streamcl.advice.candidates import (
    BackboneChoice,
    Candidate,
    candidates_of,
    configured_backbone,
    image_sizes,
)
from streamcl.advice.front import Correct
from streamcl.advice.latency import Latencies, Workload, idle_clock, latencies, prediction_seconds
from streamcl.advice.memory import RunSizes, run_memory
from streamcl.advice.proxies import GRADIENT_SAMPLES, feature_proxies, size_proxies, trainability
from streamcl.config.options.run import RunConfig
from streamcl.errors import ConfigError
from streamcl.events import Sample
from streamcl.factory.backbone import build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.leave_one_out import leave_one_out_scores
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.branch_parts import blocks_of_branch
from streamcl.learners.ridge_lora_options import RidgeLoRAOptions
from streamcl.learners.ridge_options import RidgeLearnerOptions, RidgeOptions
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

logger = logging.getLogger(__name__)

Variant: TypeAlias = Callable[[Sequence[str]], RunConfig]
"""Returns a configuration with further overrides, such as "backbone.depth=7"."""


def ridge_options(config: RunConfig) -> RidgeOptions:
    """Return the options of the ridge head on frozen features; raise ConfigError where there is none."""
    learner = config.learner
    if isinstance(learner, RidgeLoRAOptions):
        return learner.ridge
    if isinstance(learner, RidgeLearnerOptions):
        return learner
    raise config.refuse("learner", "advice is for learners with a ridge head: ridge and ridge_lora")


def branch_start(config: RunConfig, depth: int) -> int | None:
    """Return the first block of the adapted branch at that depth of the backbone; None without a branch."""
    learner = config.learner
    if not isinstance(learner, RidgeLoRAOptions) or not learner.lora.warmup_samples:
        return None
    return learner.lora.first_adapted(depth)


class Space:
    """The candidates of one backbone.

    Attributes: config, without further overrides; candidates, all that it allows; sizes, of the backbone at
    each image size.
    """

    def __init__(self, variant: Variant, choice: BackboneChoice, compute: Compute) -> None:
        self._variant, self._compute, self._choice = variant, compute, choice
        self.config = variant(())
        self._ridge = ridge_options(self.config)
        self._tokens: dict[int, BlockTokens] = {}
        self._gradients: dict[tuple[int, int], dict[str, float]] = {}
        first, wanted = self._first()
        for size in image_sizes(patch_side(first), wanted):
            try:
                backbone = first if size == first.image_size else self._built(size)
            except ConfigError as error:
                logger.info("%d pixels are left out: %s", size, error)
                continue
            self._tokens[size] = BlockTokens(backbone, compute, self._ridge.tta_views)
        self.sizes: dict[int, BackboneSizes] = {size: each.sizes for size, each in self._tokens.items()}
        self.candidates = [each for each in self._possible() if self._is_allowed(each)]
        if not self.candidates:
            raise ConfigError(f"{choice.name}: no image size and depth goes with the configuration")

    def read(self, samples: Sequence[Sample]) -> None:
        """Read the features of samples, one or more, at every image size."""
        for tokens in self._tokens.values():
            tokens.read(samples)

    def correct(self, candidate: Candidate, targets: Tensor) -> Correct:
        """Return which of the samples that were read the head predicts, each left out, bool [N].

        Args:
            candidate: one of this space.
            targets: int64 [N], the classes of the samples.
        """
        ridge, rows = self._ridge, self.features(candidate)
        if ridge.projection is not None:
            seed = self.config.seed
            head = RidgeHead(rows.shape[1], projection=ridge.projection, seed=seed)
            rows = head.statistic_rows(rows)
        scores = leave_one_out_scores(
            rows,
            targets,
            trace_ridge=ridge.trace_ridge,
            variance_ridge=ridge.variance_ridge,
            gcv_margin=ridge.gcv_margin,
        )
        return np.asarray((scores.argmax(dim=1) == targets).numpy(), np.bool_)

    def features(self, candidate: Candidate) -> Tensor:
        """Return the features [N, D] of the samples that were read."""
        return self._tokens[candidate.image_size].of_blocks(candidate.blocks)

    def latencies(self, samples: Sequence[Sample]) -> Latencies:
        """Return the seconds of one prediction by image size and depth; learners learn the samples first."""
        works = {
            (each.image_size, each.depth): self._work(each.image_size, each.depth) for each in self.candidates
        }
        logger.info("measuring predictions of single images by %s", self._choice.name)
        return latencies(works, lambda size, depth: self._measured(size, depth, samples))

    def proxies(self, candidate: Candidate, samples: Sequence[Sample], targets: Tensor) -> dict[str, float]:
        """Return the zero-shot proxies of a candidate, by name.

        Args:
            candidate: one of this space.
            samples: the first ones that were read.
            targets: int64 [N], the classes of all that were read.
        """
        size, depth = candidate.image_size, candidate.depth
        tokens = self._tokens[size]
        if (size, depth) not in self._gradients:
            found = trainability(tokens.backbone, depth, samples[:GRADIENT_SAMPLES], targets)
            self._gradients[size, depth] = found._asdict()
        rows = self.features(candidate)
        return {
            **size_proxies(tokens.sizes, depth),
            **feature_proxies(rows, targets),
            **self._gradients[size, depth],
        }

    def memory(self, candidate: Candidate, libraries: float, classes: int) -> float:
        """Return the bytes of a run, estimated.

        Args:
            candidate: one of this space.
            libraries: bytes of the process without a model.
            classes: of the stream.
        """
        config, sizes = self.config, self.sizes[candidate.image_size]
        start, depth = branch_start(config, candidate.depth), candidate.depth
        features = [self._ridge.projection or sum(sizes.features[each] for each in candidate.blocks)]
        if start is not None:
            features.append(sum(sizes.features[each] for each in blocks_of_branch(start, candidate.blocks)))
        return run_memory(
            RunSizes(
                libraries=libraries,
                parameters=sum(sizes.parameters[: depth + 1]),
                tokens=sizes.tokens,
                width=sizes.width,
                depth=depth,
                rows=self._compute.rows * self._ridge.tta_views,
                pixels=candidate.image_size**2,
                features=features,
                classes=classes,
                trained_blocks=0 if start is None else depth - start,
                batch=config.batch.largest,
                half=self._compute.precision != "32-true",
            )
        )

    def _first(self) -> tuple[Backbone, int]:
        """Return the backbone at one image size, and the image size around which candidates lie."""
        config = self.config
        if self._choice == configured_backbone(config):
            backbone = self._built(config.backbone.image_size)
            return backbone, backbone.image_size
        backbone = self._built(None)
        patch, wanted = patch_side(backbone), config.backbone.image_size or backbone.image_size
        return backbone, max(1, round(wanted / patch)) * patch

    def _built(self, size: int | None) -> Backbone:
        """Return the backbone at an image size, or its own, with all blocks that candidates may have."""
        config = self.config
        changes = {"name": self._choice.name, "weights": self._choice.weights, "image_size": size}
        if self._choice != configured_backbone(config):
            changes["depth"] = None
        options = config.backbone.model_copy(update={**changes, "compile": False, "cuda_graphs": False})
        return build_vit(config.model_copy(update={"backbone": options}), self._compute)

    def _possible(self) -> list[Candidate]:
        sizes = list(self.sizes)
        if not sizes:
            return []
        first = self.sizes[sizes[0]]
        every = candidates_of(self._choice, sizes, first.depth)
        return [each for each in every if each.depth == first.depth] if first.has_stages else every

    def _is_allowed(self, candidate: Candidate) -> bool:
        try:
            self._variant(candidate.overrides(self.config))
        except ConfigError as error:
            logger.info("a depth of %d is left out: %s", candidate.depth, error)
            return False
        return True

    def _work(self, size: int, depth: int) -> Workload:
        start = branch_start(self.config, depth)
        adapted = 0 if start is None else depth - start
        return Workload(self.sizes[size].tokens, self._ridge.tta_views * depth + adapted)

    def _measured(self, size: int, depth: int, samples: Sequence[Sample]) -> float:
        alike = [each for each in self.candidates if (each.image_size, each.depth) == (size, depth)]
        candidate = alike[len(alike) // 2]  # the number of feature blocks changes a hundredth of the time
        overrides = candidate.overrides(self.config)
        config = self._variant([*overrides, *_soon_trained(self._variant(overrides))])
        compute = self._compute.for_requests()
        learner = build_learner(config, build_vit(config, compute), compute)
        return prediction_seconds(learner, samples, idle_clock(compute.device.type))


def _soon_trained(config: RunConfig) -> list[str]:
    """Return overrides by which an adapted branch has a say after the first batch."""
    if branch_start(config, config.backbone.depth or 1) is None:
        return []
    return ["learner.lora.warmup_samples=1", "learner.latents=null"]
