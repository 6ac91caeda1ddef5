"""timm and predictions do without torch's compiler, and leave it whole for those who compile."""

import json
import subprocess
import sys

import pytest
import torch

from streamcl.nn import optimizers

_TIMM = """
import sys
import torch
own = torch.compiler.disable
from streamcl.nn.timm_compat import import_timm
timm = import_timm()
deferred = not [name for name in sys.modules if name.startswith(("torch._dynamo", "sympy"))]
unchanged = torch.compiler.disable is own

sizes = dict(embed_dim=32, depth=1, num_heads=2, num_classes=3)
model = timm.create_model("naflexvit_base_patch16_gap", **sizes).eval()  # has methods that are not compiled
images = torch.rand(2, 3, 64, 64)
with torch.no_grad():
    expected = model(images)
    compiled = torch.compile(model, backend="eager")(images)

import torch._dynamo.utils, torchvision.ops.roi_align
roi_align = sys.modules["torchvision.ops.roi_align"]
import json
print(json.dumps({
    "deferred": deferred,
    "unchanged": unchanged,
    "equal": torch.equal(compiled, expected),
    "compiled": torch._dynamo.utils.counters["stats"]["calls_captured"] > 0,
    "delegates": roi_align.is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu"),
    "disables": torch.compile(torch.compiler.disable(lambda x: x + 1), backend="eager")(1) == 2,
    "whole": torch._dynamo.utils is sys.modules["torch._dynamo.utils"],
}))
"""

_ANY_NAME = """
import sys
from streamcl.sources.deferred_compiler import deferred_compiler
with deferred_compiler():
    from torch._dynamo.utils import counters
import torch._dynamo.utils
print(counters is torch._dynamo.utils.counters)
"""


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_timm_is_imported_without_the_compiler_which_then_works() -> None:
    found = json.loads(printed(_TIMM))
    assert found == dict.fromkeys(found, True)


def test_another_name_of_the_compiler_is_imported_at_once() -> None:
    assert printed(_ANY_NAME) == "True"


@pytest.mark.parametrize(
    ("ours", "theirs"), [(optimizers.Adam, torch.optim.Adam), (optimizers.SGD, torch.optim.SGD)]
)
def test_our_optimizers_are_those_of_torch(ours, theirs) -> None:
    stepped = []
    for kind in (ours, theirs):
        weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        optimizer = kind([weight], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        stepped.append((weight.detach(), optimizer.state_dict()))
    assert torch.equal(stepped[0][0], stepped[1][0])
    assert stepped[0][1].keys() == stepped[1][1].keys()
    assert stepped[0][1]["param_groups"] == stepped[1][1]["param_groups"]
