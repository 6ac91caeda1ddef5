"""Operations of torch that run out of memory or return NaN, to see that a learner's state survives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "dot", "linear", "convolution", "matmul"}


class OutOfMemory(TorchDispatchMode):
    """While it is entered, counts torch's operations in `count`, and raises OutOfMemoryError at one of them.

    Args:
        fails_at: the number of the operation that raises, from 1; None only counts.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fails_at, self.count = fails_at, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.count += 1
        if self.count == self.fails_at:
            raise torch.OutOfMemoryError(f"no memory for {func}")
        return func(*args, **(kwargs or {}))


class NotFiniteProducts(TorchDispatchMode):
    """While it is entered, every product of matrices is NaN, as after an overflow; `count` says how many."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS and result.is_floating_point():
            self.count += 1
            return torch.full_like(result, torch.nan)
        return result
