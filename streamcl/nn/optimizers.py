"""Adam and SGD of torch, which can be made, and hold their state, without an import of torch's compiler."""

from __future__ import annotations

import inspect

import torch


class _WithoutCompiler(torch.optim.Optimizer):
    """Takes parameters without torch._dynamo, a second of processor time that a prediction does not need.

    torch hides this method from its compiler by a wrapper that imports it. Nothing here compiles the making
    of an optimizer; the first step imports it all the same.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """torch.optim.Adam."""


class SGD(_WithoutCompiler, torch.optim.SGD):
    """torch.optim.SGD."""
