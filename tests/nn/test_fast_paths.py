"""Private interfaces of torch: each is there, each can vanish, and all can be turned off."""

import ast
import copy
import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from torch import nn

from streamcl.learners.predictions import all_finite
from streamcl.nn import fast_paths, frozen_linear
from streamcl.nn.device import resolve_compute
from streamcl.nn.fast_paths import PRIVATE_NAMES, enabled, without_fast_paths
from streamcl.nn.frozen_linear import cast_once, freeze_linears
from streamcl.nn.lora import LoRALinear

ROOT = Path(__file__).parents[2]


class Without:
    """A part of torch that lacks one attribute."""

    def __init__(self, part, lacks):
        self._part, self._lacks = part, lacks

    def __getattr__(self, name):
        if name == self._lacks:
            raise AttributeError(name)
        return getattr(self._part, name)


def results():
    """Everything that has a fast path: products in bf16, casts, finiteness, the choice of precision."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 96)
    adapted = LoRALinear(copy.deepcopy(layer), 4, torch.Generator().manual_seed(0))
    adapted.bypassed = True
    frozen = nn.Sequential(layer)
    freeze_linears(frozen)
    x = torch.randn(5, 48)
    found = []
    for _ in range(2):  # the second time with weights that were cast before
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found += [frozen(x), adapted(x)]
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(cast_once(layer.weight, torch.bfloat16), layer.weight.detach().bfloat16())
    assert all_finite(x, x)
    assert not all_finite(x, torch.tensor([torch.nan]))
    assert not all_finite(torch.tensor([torch.inf]), x)
    assert all_finite(torch.tensor([3e38]))
    assert resolve_compute("cpu", "auto").precision in {"32-true", "bf16-mixed"}
    return found


def assert_alike(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_the_installed_torch_has_it(name):
    assert attrgetter(name)(torch) is not None


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_where_torch_has_it_no_more_the_results_are_the_same(name, monkeypatch):
    straight = results()
    owner, _, lacks = name.rpartition(".")
    if owner == "Tensor":  # of a C type: nothing can be taken from it
        monkeypatch.setattr(frozen_linear, "write_count", lambda _: None)
    elif owner:
        parent, _, last = owner.rpartition(".")
        part = attrgetter(owner)(torch)
        monkeypatch.setattr(attrgetter(parent)(torch) if parent else torch, last, Without(part, lacks))
    else:
        monkeypatch.delattr(torch, lacks)
    monkeypatch.setattr(fast_paths, "find_fused_bias_linear", fast_paths.find_fused_bias_linear.__wrapped__)
    if lacks in {"_is_mkldnn_bf16_supported", "_linear_pointwise"}:
        assert fast_paths.fused_bias_linear() is None
    assert_alike(results(), straight)


def test_all_of_them_can_be_turned_off():
    straight = results()
    with without_fast_paths():
        assert not enabled()
        assert fast_paths.fused_bias_linear() is None
        assert fast_paths.write_count(torch.ones(1)) is None
        assert not fast_paths.cpu_multiplies_bf16()
        assert_alike(results(), straight)
    assert enabled()


def test_the_environment_turns_them_off(monkeypatch):
    straight = results()
    monkeypatch.setenv("STREAMCL_FAST_PATHS", "0")
    assert not enabled()
    assert_alike(results(), straight)


def test_no_other_module_reads_private_parts_of_torch():
    for path in (ROOT / "streamcl").rglob("*.py"):
        text = path.read_text()
        if path.name == "fast_paths.py" or "torch" not in text or not re.search(r"\._[a-zA-Z]", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[1] != "_":
                assert not ast.unparse(node.value).startswith("torch."), f"{path}: {ast.unparse(node)}"
                assert ast.unparse(node.value) != "torch", f"{path}: {ast.unparse(node)}"
