"""Puts off the import of torch._dynamo, a second of processor time, until something is compiled."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

_COMPILER = "torch._dynamo"
_PART = "torch._dynamo.utils"


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """Let torchvision and timm be imported without torch._dynamo, and leave all of torch as it was.

    Both need the compiler only to compile: torchvision imports a function of `torch._dynamo.utils` for one
    operator on GPUs, and timm marks a few methods of its NaFlexViT by `torch.compiler.disable`. Inside the
    block these two have stand-ins, which import torch._dynamo at the first call that needs it; a name that
    they lack is taken from torch._dynamo at once. Nothing happens where torch._dynamo is imported already.
    """
    if _COMPILER in sys.modules:
        yield
        return
    own = torch.compiler.disable
    part = sys.modules[_PART] = _DeferredPart(_PART)
    torch.compiler.disable = _disable_when_called
    try:
        yield
    finally:
        torch.compiler.disable = own
        if sys.modules.get(_PART) is part:
            del sys.modules[_PART]


class _DeferredPart(ModuleType):
    """Has the one function that torchvision imports; imports torch._dynamo for any other name."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        """Return what the function of this name in torch._dynamo.utils returns."""
        return importlib.import_module(_PART).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for its file
            raise AttributeError(f"{_PART} is not imported yet: {name}")
        if sys.modules.get(_PART) is self:
            del sys.modules[_PART]
        return getattr(importlib.import_module(_PART), name)


def _disable_when_called(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:  # noqa: ARG001
    """Mark a function for `torch.compile` at its first call, as torch marks its own; the reason is lost."""
    return _disable_dynamo(fn, recursive)
