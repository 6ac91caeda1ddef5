"""Every learner's whole way on a device that is not the CPU: learn, consolidate, forget, resume, audit.

The device is pretended (see pretend_gpu), so this shows where tensors lie, not what a GPU computes.
"""

import functools
import json

import numpy as np
import pytest
import torch
from pictures import TINY_VIT
from pretend_gpu import Far, pretended_gpu

from streamcl.audit.data import AuditConfig
from streamcl.audit.run import audit_run
from streamcl.runs.open import open_run

pytestmark = pytest.mark.long

COUNT, STOP, LATE = 80, 24, 56  # the last is when what is learned in either part is asked back
ADAPT = {"warmup_samples": 16, "first_block": 1}
LEARNERS = {
    "online_lora": {"name": "online_lora", "hard_buffer_size": 4},
    "low_pass": {"name": "online_lora", "hard_buffer_size": 4, "backprop": {"lbp_wht": {"order": 1}}},
    "hybrid": {"name": "ridge_lora", "lora": ADAPT, "ridge": {"blocks": [0, 1]}},
    "ridge": {"name": "ridge", "blocks": [1]},
    "projected": {"name": "ridge", "blocks": [1], "projection": 32},
    "slda": {"name": "slda", "blocks": [1]},
    "ncm": {"name": "ncm", "blocks": [1]},
    "reconstruct": {"name": "reconstruct", "blocks": [1]},
    "cohorts": {"name": "cohort_adapters", "cohort_by": "domain", "lora": ADAPT, "ridge": {"blocks": [1]}},
    "mixed": {"name": "mixed_privacy"},
    **{name: {"name": name} for name in ("er", "der_pp", "naive_lora", "frozen_linear", "ewc_pp")},
}


@pytest.fixture
def images(tmp_path):
    """An .npz of 80 pictures of four classes in two domains, in the backbone's own size."""
    rng = np.random.default_rng(0)
    y = np.arange(COUNT) % 4
    x = rng.integers(0, 60, (COUNT, 32, 32, 3)) + 45 * y[:, None, None, None]
    path = tmp_path / "pack.npz"
    meta = json.dumps({"classes": list("abcd"), "domains": ["p", "q"]})
    np.savez(path, x=x.astype(np.uint8), y=y, d=np.arange(COUNT) // 40, meta=np.array(meta))
    return path


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu(monkeypatch):
        yield


def configuration(images, learner, **more):
    return {
        "name": "gpu",
        "run_dir": str(images.parent / "run"),
        "source": {"name": "npz", "args": {"path": str(images)}},
        "scenario": {"name": "disjoint", "parts": 2},
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "weights": "none",
            "image_size": 32,
            "args": {**TINY_VIT, "depth": 2},
        },
        "batch": 8,
        "threads": 1,
        "device": "cuda",
        "precision": "32-true",
        "report": {"samples": 0},
        "checkpoint": {"every_samples": 16},
        "learner": learner,
        **more,
    }


def on_cpu(config, folder):
    return {**config, "device": "cpu", "run_dir": str(folder)}


def carried_through(config, stop=STOP):
    """The predictions of a run that stops once and goes on, with a consolidation where it stopped."""
    seen = []
    with open_run(config) as run:
        for prediction in run:
            seen.append(prediction)
            if len(seen) == stop:
                if hasattr(run.learner, "consolidate"):
                    run.learner.consolidate()
                run.processor.stop()
    with open_run(config) as run:
        seen += list(run)
        return seen, run.summary()


QUICK = {
    "online_lora",
    "hybrid",
    "mixed",
    "er",
}  # between them they have every kind of part; the rest is slow


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in LEARNERS]
)
def test_a_run_on_a_gpu_learns_stops_forgets_and_goes_on_as_on_a_cpu(images, monkeypatch, tmp_path, name):
    config = configuration(
        images, LEARNERS[name], forgetting={"requests": [{"offset": STOP + 16, "class": "a"}]}
    )
    plain, there = carried_through(on_cpu(config, tmp_path / "cpu"))
    with pretended_gpu(monkeypatch):
        seen, here = carried_through(config)
    assert [each.label for each in seen] == [each.label for each in plain]
    assert np.allclose([p.confidence for p in seen], [p.confidence for p in plain], atol=1e-4)
    assert here["holdout"]["A_Last"] == there["holdout"]["A_Last"]
    assert here["timing"]["device"] == "a pretended GPU"


@pytest.mark.parametrize("method", ["gs_lora", pytest.param("fast_ntk", marks=pytest.mark.slow)])
def test_a_repair_of_shared_weights_ends_on_a_gpu_as_on_a_cpu(images, monkeypatch, tmp_path, method):
    learner = {"name": "online_lora", "learning_rate": 1e-2, "hard_buffer_size": 4}
    forget = [{"offset": LATE, "class": "a", "method": method}]
    config = configuration(images, learner, forgetting={"requests": forget}, scenario="iid")
    carried_through(on_cpu(config, tmp_path / "cpu"))
    with pretended_gpu(monkeypatch):
        carried_through(config)
    one, other = (receipt_in(folder) for folder in (tmp_path / "cpu", tmp_path / "run"))
    assert one["method"] == other["method"] == method
    assert one["outcome"] == other["outcome"]
    assert one["figures"].keys() == other["figures"].keys()


def receipt_in(folder):
    (path,) = (folder / "receipts").glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["ridge", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_kept_sums_are_subtracted_on_a_gpu(gpu, images, name):
    forget = [{"offset": LATE, "class": "a"}]
    carried_through(
        configuration(images, LEARNERS[name], forgetting={"requests": forget, "keep_statistics": "per_class"})
    )
    receipt = receipt_in(images.parent / "run")
    assert (receipt["outcome"], receipt["guarantee"]) == ("done", "exact")
    assert receipt["figures"]["from_stored_statistics"] > 0


@pytest.mark.parametrize(
    ("name", "rerun"),
    [
        ("ridge", False),
        pytest.param("hybrid", False, marks=pytest.mark.slow),
        pytest.param("online_lora", True, marks=pytest.mark.slow),
    ],
)
def test_an_audit_finds_on_a_gpu_what_it_finds_on_a_cpu(images, monkeypatch, tmp_path, name, rerun):
    config = configuration(
        images, LEARNERS[name], forgetting={"requests": [{"offset": LATE, "class": "a"}]}, scenario="iid"
    )
    audit = functools.partial(audit_run, config=AuditConfig(references=8, reruns=8), retrain=rerun)
    carried_through(on_cpu(config, tmp_path / "cpu"))
    there = audit(tmp_path / "cpu")
    with pretended_gpu(monkeypatch):
        carried_through(config)
        here = audit(tmp_path / "run")
    assert (here.verdict, here.counts, here.models) == (there.verdict, there.counts, there.models)
    assert {each.measure: each.value for each in here.results} == {
        each.measure: pytest.approx(each.value, abs=1e-3) for each in there.results
    }


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu):
    there = torch.arange(3.0).to("cuda")
    assert isinstance(there, Far)
    assert isinstance(torch.zeros(2, device="cuda"), Far)
    assert isinstance(there.new_tensor([1.0]), Far)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]
    assert there[torch.tensor([1])].cpu().numpy() == [1.0]
