"""Weights that several processes share: the same bytes, in one file, as pages that are not private."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_backbones import build, images

from streamcl.nn.weights.mapped import map_weights


def features(backbone):
    with torch.no_grad():
        return backbone.final(backbone.run(backbone.stem(backbone.prepare(images())))[-1])


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin"])
def test_the_features_stay_and_the_file_is_written_once(tmp_path, family):
    backbone = build(family)
    before = features(backbone)
    map_weights(backbone, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{backbone.fingerprint}.safetensors"
    assert torch.equal(features(backbone), before)
    assert not any(each.requires_grad for each in backbone.parameters())
    written = path.stat().st_mtime_ns
    other = build(family)
    map_weights(other, tmp_path)
    assert torch.equal(features(other), before)
    assert path.stat().st_mtime_ns == written


SCRIPT = """
import sys
from pathlib import Path
from tiny_backbones import build
from streamcl.nn.weights.mapped import map_weights
backbone = build("vit")
map_weights(backbone, Path(sys.argv[1]))
total = sum(each.sum().item() for each in backbone.parameters())  # every page is read
print(Path("/proc/self/smaps").read_text())
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not show its mappings")
def test_the_pages_belong_to_the_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (path,) = tmp_path.iterdir()
    mapping = done.stdout[done.stdout.index(str(path)) :]
    assert int(re.search(r"Anonymous: +(\d+) kB", mapping)[1]) == 0
    assert int(re.search(r"Rss: +(\d+) kB", mapping)[1]) * 1024 > 0.9 * path.stat().st_size
