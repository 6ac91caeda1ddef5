"""A device that says it is cuda:0 and computes on the CPU, so that what lies on the wrong one fails here too.

Like a GPU it refuses an operation on tensors of both places (but for numbers without dimensions, and for
indices), to be read as NumPy, and a generator of the CPU. It says nothing of speed or of a GPU's rounding.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
CROSSING = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}


class Far(torch.Tensor):
    """A tensor that is on the pretended device; `near` is what it holds."""

    @staticmethod
    def __new__(cls, near):
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device="cpu",
            requires_grad=near.requires_grad,
        )
        far.near = near.detach()
        return far

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    def __repr__(self):
        return f"Far({self.near!r})"

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.detach().near.tolist()

    def cpu(self):
        return near_of(self)

    def untyped_storage(self):
        return self.near.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, far):
        return far.near.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Far(gradient)


def near_of(tensor):
    return _Fetch.apply(tensor) if isinstance(tensor, Far) else tensor


def computed(func, args, kwargs):
    """What the operation comes to on the CPU, on the pretended device; refused where a GPU would."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    owned = {id(each.near): each for each in tensors if isinstance(each, Far)}
    strangers = [each for each in tensors if not isinstance(each, Far) and each.ndim > 0]
    indices = name.startswith(tuple(INDEXING)) and isinstance(args[0], Far)
    if strangers and func._schema.name not in CROSSING and not indices:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {name}"
        )
    given = tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, kwargs))
    made = func(*given[0], **{k: v for k, v in given[1].items() if k != "device"})
    if func._schema.name == "aten::copy_" and not isinstance(args[0], Far):
        return args[0]

    def wrapped(each):
        if not isinstance(each, torch.Tensor):
            return each
        return owned[id(each)] if id(each) in owned else Far(each)

    return tree_map(wrapped, made)


class _Pretend(TorchFunctionMode):
    """Makes there what is asked for there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return sent(func(*args, **(kwargs | {"device": "cpu"})))


PLAIN_TO, PLAIN_NEW = torch.Tensor.to, torch.Tensor.new_tensor


def _to(tensor, *args, **kwargs):
    """Tensor.to; in the place of the method, as a mode is left on the way back through a graph."""
    device, others = kwargs.pop("device", None), []
    for each in args:
        if isinstance(each, torch.Tensor):
            device = each.device
            others.append(each.dtype)
        elif isinstance(each, str | torch.device):
            device = each
        elif isinstance(each, torch.dtype):
            others.append(each)
    kwargs.pop("non_blocking", None)
    if device is not None:
        tensor = sent(tensor) if torch.device(device).type == "cuda" else near_of(tensor)
    return PLAIN_TO(tensor, *others, **kwargs) if others or kwargs else tensor


def _new(tensor, data, **kwargs):
    made = PLAIN_NEW(tensor.near if isinstance(tensor, Far) else tensor, data, **kwargs)
    return sent(made) if isinstance(tensor, Far) else made


def sent(tensor):
    """The tensor on the pretended device, a copy of its own."""
    if isinstance(tensor, Far):
        return tensor
    far = Far(tensor.detach().clone())
    return far.requires_grad_(tensor.requires_grad)


@contextmanager
def pretended_gpu(monkeypatch):
    """One GPU as far as torch tells."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda *_, **__: False,
        "synchronize": lambda *_: None,
        "get_device_name": lambda *_: "a pretended GPU",
        "max_memory_allocated": lambda *_: 0,
        "manual_seed_all": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.Tensor, "to", _to)
    monkeypatch.setattr(torch.Tensor, "new_tensor", _new)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a Far is not put into a CPU tensor
    try:
        with _Pretend():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
