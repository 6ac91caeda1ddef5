"""Compiles a backbone's frozen blocks: fewer passes through memory for the same products."""

from __future__ import annotations

import numpy as np
import torch

from streamcl.errors import ConfigError
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute


def compile_blocks(backbone: Backbone, compute: Compute) -> None:
    """Have the blocks compiled by torch.compile for chunks of `compute.rows` images, in one view or in two.

    Other numbers of images, and passes with gradients, go through the blocks as they were, so the choice
    depends on the shape alone, not on what came before. The first block is compiled at once, for one view;
    the others follow when they are needed. Raise ConfigError where the compiler is missing or gives up.
    """
    quick = [torch.compile(block, dynamic=False, fullgraph=True) for block in backbone.blocks]
    backbone.use_compiled(quick, rows=frozenset({compute.rows, 2 * compute.rows}))
    blank = np.zeros((backbone.image_size, backbone.image_size, 3), np.uint8)
    try:
        with torch.no_grad(), compute.autocast():
            backbone.run(backbone.stem(backbone.prepare([blank] * compute.rows)), 0, 1)
    except Exception as error:  # the compiler's errors have no common ancestor
        raise ConfigError(
            f"backbone.compile: torch.compile cannot compile {backbone.name}: {_cause(error)}",
            hint="on a CPU it needs a C++ compiler, and torch at a path without a space",
        ) from error


def _cause(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
    return lines[0] if lines else type(error).__name__
