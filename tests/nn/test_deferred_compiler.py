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

from streamcl.sources.deferred_compiler import deferred_compiler
with deferred_compiler():  # a name without a stand-in is imported at once
    from torch._dynamo.utils import counters
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
    "at once": counters is sys.modules["torch._dynamo.utils"].counters,
    "equal": torch.equal(compiled, expected),
    "compiled": torch._dynamo.utils.counters["stats"]["calls_captured"] > 0,
    "delegates": roi_align.is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu"),
    "disables": torch.compile(torch.compiler.disable(lambda x: x + 1), backend="eager")(1) == 2,
    "whole": torch._dynamo.utils is sys.modules["torch._dynamo.utils"],
}))
"""


@pytest.mark.long
def test_timm_is_imported_without_the_compiler_which_then_works() -> None:
    done = subprocess.run([sys.executable, "-c", _TIMM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == dict.fromkeys(found, True)


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
