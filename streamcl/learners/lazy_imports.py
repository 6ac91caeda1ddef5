"""Imports that wait for their first use, so that the options of a learner are read without torch."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Let `import module` and `from package import module` in the block import each module at its first use.

    Options of learners are declared beside the learners, and reading a configuration must not wait for torch.
    The block binds objects that import the module when an attribute of it is read; imports that other modules
    make meanwhile are not affected.
    """
    caller, real = sys._getframe(2).f_globals, builtins.__import__

    def lazily(name: str, scope: Any = None, *rest: Any) -> Any:  # rest: locals, names after import, level
        if scope is not caller:
            return real(name, scope, *rest)
        if not rest[1]:
            return _LazyModule(name)
        return SimpleNamespace(**{each: _LazyModule(f"{name}.{each}") for each in rest[1]})

    builtins.__import__ = lazily  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = real


class _LazyModule:
    """Stands for a module that is imported at its first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
