"""Peers do the same work and are counted alike; a reason stands where figures are absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))
import peer_environments
import with_plain_torch
import with_streamcl
from code_lines import count_lines
from measure import measure
from peer_environments import PEERS, NoEnvironment, Peer, python_of
from peer_table import table
from prepare import prepare
from work import LoRA, read_work

from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit

pytestmark = pytest.mark.long
MODULES = Path(with_streamcl.__file__).parent
OPTIONS = {
    "backbone": "vit_tiny_patch16_224",
    "depth": 2,
    "size": 32,
    "batch": 8,
    "rate": 1e-3,
    "threads": 1,
    "seed": 0,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Coloured squares in four classes, two at a time, and a random ViT."""
    folder = tmp_path_factory.mktemp("peers")
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]])
    y = np.arange(80) % 4
    noise = np.random.default_rng(0).integers(0, 6, (80, 16, 16, 3))
    x = (colours[y][:, None, None] - noise).clip(0, 255).astype(np.uint8)
    np.savez(folder / "pack.npz", x=x, y=y, split=np.repeat([0, 1], [60, 20]))
    prepare(folder / "work", OPTIONS, 48, folder / "pack.npz", "none")
    return read_work(folder / "work")


def test_the_work_is_a_stream_of_new_classes_numbered_as_they_come(work) -> None:
    assert work.images.shape == (48, 3, 32, 32)
    assert work.images.dtype == torch.uint8
    first_seen = [work.labels.tolist().index(number) for number in range(4)]
    assert first_seen == sorted(first_seen)
    assert set(work.test_labels.tolist()) == set(range(4))


@pytest.mark.parametrize(
    ("peer", "method"),
    [
        *((with_plain_torch, name) for name in with_plain_torch.METHODS),
        *((with_streamcl, name) for name in with_streamcl.METHODS),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_method_learns_the_stream_and_is_measured(work, peer, method) -> None:
    found = measure(peer.METHODS[method], work)
    assert found["images_per_s"] > 0
    assert found["peak_mib"] > 100
    assert 0 <= found["accuracy"] <= 1
    assert 5 < found["lines"] < 100
    if method in {"ncm", "slda"}:
        assert found["accuracy"] > 0.9


def test_streamcl_reads_the_same_frozen_features_as_the_others(work) -> None:
    """Same weights, pixels and normalisation: what a peer is given is what a run of streamcl sees."""
    config = config_from_dict(with_streamcl.configuration(work, {"name": "ncm"}))
    own = build_vit(config, build_compute(config))
    images = [image.permute(1, 2, 0).numpy() for image in work.images[:4]]
    with torch.no_grad():
        seen = own.final(own.run(own.stem(own.prepare(images)))[-1])
        given = work.features().eval()(work.images[:4])
    torch.testing.assert_close(given, seen, rtol=1e-4, atol=1e-4)


def test_consolidation_of_the_papers_loop_keeps_the_outputs(work) -> None:
    learner = with_plain_torch.OnlineLoRA(work)
    for images, labels in zip(work.images.split(8)[:3], work.labels.split(8)[:3], strict=True):
        learner.step(images, labels)
    with torch.no_grad():
        before = learner.model(work.test_images)
        assert any(bool(each.B.abs().max()) for each in learner.model.modules() if isinstance(each, LoRA))
    learner.consolidate()
    with torch.no_grad():
        torch.testing.assert_close(learner.model(work.test_images), before, rtol=1e-4, atol=1e-4)
    assert all(bool(each.max() > 0) for each in learner.importance[:1])


def test_lines_are_those_that_a_user_writes() -> None:
    text = '''"""A module."""
import torch
RATE = 2

def used(x):
    """Return it."""
    # a comment

    return x * RATE

def other():
    return 1

def method(work):
    import json
    return used(
        work
    )
'''
    assert count_lines(text, "method") == 7


def test_every_peer_has_a_module_with_its_methods() -> None:
    for peer in PEERS:
        text = (MODULES / f"{peer.module}.py").read_text(encoding="utf-8")
        for method in peer.methods:
            assert f"def {method}(" in text


def test_a_peer_that_cannot_be_installed_keeps_its_reason(tmp_path, monkeypatch) -> None:
    peer = Peer("nobody", "with_nobody", ("slda",), packages=("./no-such-folder",))
    monkeypatch.setattr(peer_environments, "SHARED", ())
    with pytest.raises(NoEnvironment) as refused:
        python_of(peer, tmp_path)
    assert "no-such-folder" in str(refused.value)
    monkeypatch.setattr(peer_environments.subprocess, "run", pytest.fail)
    with pytest.raises(NoEnvironment, match="no-such-folder"):
        python_of(peer, tmp_path)


def figures(rate: float) -> dict[str, float | None]:
    return {
        "images_per_s": rate,
        "images_per_cpu_s": rate / 2,
        "peak_mib": 500.0,
        "accuracy": 0.5,
        "lines": 12,
        "joules_per_image": None,
    }


def test_the_table_has_ratios_within_rounds_and_reasons() -> None:
    where = {"date": "2026-01-01", "cpu": "x", "cores": 2, "torch": "2", "python": "3", "load": 0.1}
    how = {**OPTIONS, "images": 48, "stream": "squares", "rounds": 2}
    runs = {
        ("streamcl", "slda"): [figures(30.0), figures(40.0)],
        ("quick", "slda"): [figures(10.0), figures(20.0)],
        ("slow", "slda"): [figures(1.0), figures(2.0)],
        ("absent", "slda"): ["cannot be installed: no Java", "cannot be installed: no Java"],
    }
    text = table(runs, where, how, {"slow": "It waits.", "quick": ""})
    ratios = (
        "2.50 (2.00 - 3.00) of the fastest peer, quick (2.50 by processor time), with 1.00 of its memory."
    )
    assert f"streamcl is at {ratios}" in text
    assert "| absent | cannot be installed: no Java | | | | |" in text
    assert "- slow: It waits." in text
    assert "joules an image" not in text
    for found in runs.values():
        for each in found:
            if not isinstance(each, str):
                each["joules_per_image"] = 0.5
    assert "| 0.50 (0.50 - 0.50) |" in table(runs, where, how, {})
