"""Chooses the device of a run and makes its frozen backbone, with weights that are fetched where missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup, local_rank
from streamcl.nn.backbone import Backbone
from streamcl.nn.build import build_backbone, compile_blocks
from streamcl.nn.cuda_graphs import graph_blocks
from streamcl.nn.device import Compute, resolve_compute
from streamcl.nn.int8 import quantise_blocks
from streamcl.nn.process_settings import configure_process
from streamcl.nn.weights.load import convert_onnx
from streamcl.nn.weights.mapped import map_weights
from streams.download import fetch
from streams.download.pip_assets import cache_dir

logger = logging.getLogger(__name__)

BackboneFactory: TypeAlias = Callable[[RunConfig, Compute], Backbone]


def build_compute(config: RunConfig, group: ProcessGroup = SINGLE_PROCESS) -> Compute:
    """Return the device and precision of a run, after `configure_process`.

    Each of several ranks on a machine takes a GPU of its own, where there are any.
    """
    configure_process(threads=config.threads)
    if group.world_size > 1 and config.device.startswith("cuda:"):
        raise config.refuse("device", f"{config.device} is one device for {group.world_size} ranks; use cuda")
    compute = resolve_compute(config.device, config.precision, config.batch.largest)
    if group.world_size == 1 or compute.device.type != "cuda":
        return compute
    own = resolve_compute(f"cuda:{local_rank()}", config.precision)
    torch.cuda.set_device(own.device)
    return own


def build_vit(config: RunConfig, compute: Compute) -> Backbone:
    """Return the frozen backbone that the configuration names; fetch its weights where they are missing.

    Blocks are compiled, and captured as CUDA graphs, for the one shape of a run, so not where chunks fit
    requests.
    """
    options, weights = config.backbone, config.backbone.weights
    if options.int8 and options.compile:
        raise config.refuse("backbone.int8", "compiled blocks multiply in floats: use one of the two")
    if weights.startswith("fetch:"):
        weights = str(fetched_weights(weights.removeprefix("fetch:")))
    backbone = build_backbone(
        options.name,
        weights=weights,
        image_size=options.image_size,
        depth=options.depth,
        device=compute.device,
        seed=config.seed,
        args=options.args,
    )
    if options.int8:
        quantise_blocks(backbone, compute)
    if options.compile and not compute.fitted:
        logger.info("compiling the blocks of %s", options.name)
        compile_blocks(backbone, compute)
    if options.cuda_graphs and not compute.fitted:
        graph_blocks(backbone, compute)
    return backbone


def mapped_vit(folder: Path) -> BackboneFactory:
    """Return a `build_vit` whose weights are shared in memory with other processes, by a file in `folder`."""

    def make(config: RunConfig, compute: Compute) -> Backbone:
        backbone = build_vit(config, compute)
        map_weights(backbone, folder)
        return backbone

    return make


class SharedBackbones:
    """Frozen backbones that several runs of one process share, each loaded once."""

    def __init__(self) -> None:
        self._made: dict[str, Backbone] = {}

    def backbone(self, config: RunConfig, compute: Compute) -> Backbone:
        """Return the backbone that the configuration names; random weights are shared within a seed only."""
        random = config.seed if config.backbone.weights == "none" else None
        key = f"{config.backbone.model_dump_json()} {compute.device} {random}"
        if key not in self._made:
            self._made[key] = build_vit(config, compute)
        return self._made[key]


def fetched_weights(name: str) -> Path:
    """Return the path of weights as safetensors; they are fetched and converted once, then cached."""
    target = cache_dir() / "weights" / f"{name}.safetensors"
    if not target.exists():
        logger.info("fetching the weights %s, once", name)
        raw = fetch.fetch(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        convert_onnx(raw, target)
    return target
