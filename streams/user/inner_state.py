"""The state that a user's object keeps itself, as plain data that a checkpoint can hold, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from streamcl.errors import SourceError

TAG = "__type__"  # of the dicts that stand for values which are not plain data


def to_plain(value: Any, path: str = "state_dict()") -> Any:
    """Return a copy made of dicts with string keys, lists, numpy arrays, str, int, float, bool and None.

    Tuples, bytes, tensors and dicts with other keys are tagged, so that `from_plain` brings them back; numpy
    scalars become Python numbers. Raise SourceError, naming the place, for anything else.

    >>> from_plain(to_plain({1: (2, b"x")}))
    {1: (2, b'x')}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return _plain_dict(value, path)
    if isinstance(value, list | tuple):
        items = [to_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TAG: "tuple", "items": items}
    return _plain_leaf(value, path)


def from_plain(value: Any) -> Any:
    """Return a copy of the value that `to_plain` encoded."""
    if isinstance(value, dict):
        if TAG in value:
            return _READERS[value[TAG]](value)
        return {key: from_plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _plain_dict(value: dict[Any, Any], path: str) -> dict[str, Any]:
    inner = {key: to_plain(each, f"{path}[{key!r}]") for key, each in value.items()}
    if all(isinstance(key, str) for key in value) and TAG not in value:
        return inner
    return {TAG: "dict", "items": [[to_plain(key, path), each] for key, each in inner.items()]}


def _plain_leaf(value: Any, path: str) -> Any:
    if isinstance(value, bytes):
        return {TAG: "bytes", "hex": value.hex()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if type(value).__module__ == "torch" and type(value).__name__ == "Tensor":
        return _plain_tensor(value)
    raise SourceError(
        f"the source's {path} is a {type(value).__name__}, which no checkpoint can hold",
        hint="keep numbers, strings, bytes, numpy arrays, tensors, and lists, tuples and dicts of those",
    )


def _plain_tensor(value: Any) -> dict[str, Any]:
    """Return a tensor's bytes, shape and dtype; numpy does not have all of torch's dtypes."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().copy() if flat.numel() else np.zeros(0, np.uint8)
    kind = str(value.dtype).removeprefix("torch.")
    return {TAG: "tensor", "dtype": kind, "shape": list(value.shape), "bytes": content}


def _tensor(plain: Mapping[str, Any]) -> Any:
    import torch

    made = torch.empty(plain["shape"], dtype=getattr(torch, plain["dtype"]))
    if made.numel():
        made.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(plain["bytes"].copy()))
    return made


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "tuple": lambda plain: tuple(from_plain(plain["items"])),
    "bytes": lambda plain: bytes.fromhex(plain["hex"]),
    "dict": lambda plain: {from_plain(key): from_plain(inner) for key, inner in plain["items"]},
    "tensor": _tensor,
}
