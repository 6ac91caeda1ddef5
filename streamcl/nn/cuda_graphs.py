"""Replays frozen blocks as CUDA graphs: one launch a block in place of its kernels' own.

Not yet seen on a GPU: `benchmarks/gpu.sh` compares the features bit for bit and measures the gain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from streamcl.errors import ConfigError
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

WARM_UPS = 3
"""Passes before a capture, in which libraries choose kernels and allocate; torch's documentation has 3."""


def graph_blocks(backbone: Backbone, compute: Compute) -> None:
    """Replay the blocks as CUDA graphs for chunks of `compute.rows` images, in one view or in two.

    Other numbers of images, and passes with gradients, go through the blocks as they were. Blocks that are
    compiled are captured as compiled. Raise ConfigError on a CPU, which has no graphs.
    """
    if compute.device.type != "cuda":
        raise ConfigError(
            f"backbone.cuda_graphs: the device is {compute.device}, which has no CUDA graphs",
            hint="device: cuda, or backbone: {cuda_graphs: false}",
        )
    graphed = [GraphedBlock(block) for block in backbone.quick_blocks]
    backbone.use_quick_blocks(graphed, rows=frozenset({compute.rows, 2 * compute.rows}))


class GraphedBlock:
    """A block that is captured at the first tokens of a shape and replayed for all later ones.

    Its parameters must stay where they are: a graph reads addresses. Other arguments, such as a rotary
    embedding, are those of the first call for ever.
    """

    def __init__(self, block: Callable[..., Tensor]) -> None:
        self.block = block
        self._replays: dict[tuple[object, ...], Callable[[Tensor], Tensor]] = {}

    def __call__(self, tokens: Tensor, **options: Tensor) -> Tensor:
        """Return the block's output [B, N, d] of tokens [B, N, d]; no gradients pass."""
        device = tokens.device.type
        key = (
            tokens.shape,
            tokens.dtype,
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
        )
        if key not in self._replays:
            self._replays[key] = capture(self.block, tokens, **options)
        return self._replays[key](tokens)


def capture(block: Callable[..., Tensor], tokens: Tensor, **options: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that replays the block on tokens of this shape, and copies its result out.

    Autocast keeps no casts of weights meanwhile: it would free them at its end, and the graph would read
    freed memory. Frozen linear layers keep their own (see `frozen_linear`).

    Args:
        block: maps tokens [B, N, d] to tokens [B, N, d].
        tokens: [B, N, d], of the shape and type of all later ones.
        options: further arguments of the block, the same ones at every replay.
    """
    given, stream = tokens.clone(), torch.cuda.current_stream()
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        beside = torch.cuda.Stream()
        beside.wait_stream(stream)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                block(given, **options)
        stream.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = block(given, **options)
    finally:
        torch.set_autocast_cache_enabled(caching)

    def replay(tokens: Tensor) -> Tensor:
        given.copy_(tokens)
        graph.replay()
        return result.clone()

    return replay
