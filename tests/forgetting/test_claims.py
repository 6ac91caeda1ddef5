"""Receipts claim what holds, in cases in which a claim could be too wide."""

import json

import pytest
import torch
from tiny_runs import call, configuration

from streamcl.runs.open import open_run

HYBRID = {"name": "ridge_lora", "lora": {"warmup_samples": 32}}


def receipt(folder):
    return json.loads((folder / "run" / "receipts" / "r1.json").read_text())


def places(folder):
    return {place["name"]: place for place in receipt(folder)["locations"]}


def test_a_learner_with_adapters_does_not_claim_that_no_gradient_trains_it(tmp_path):
    """The samples came after the warm-up: the closed form is right, and its words have to be."""
    with open_run(configuration(tmp_path, HYBRID, max_samples=96)) as run:
        list(run)
        run.forget(offsets=(64, 70), id="r1")
        run.processor.forget()
    assert (receipt(tmp_path)["method"], receipt(tmp_path)["guarantee"]) == ("closed_form", "exact")
    for name in ("adapters", "optimizer moments"):
        assert places(tmp_path)[name]["status"] == "not affected"
        assert "none of the samples was in any step" in places(tmp_path)[name]["explanation"]


@pytest.mark.long
@pytest.mark.parametrize("learner", ["ridge", "slda"])
def test_an_erasure_by_another_number_of_threads_is_exact_and_says_the_difference(tmp_path, learner):
    before = torch.get_num_threads()
    try:
        with open_run(configuration(tmp_path, learner, max_samples=96)) as run:
            list(run)
        with open_run(configuration(tmp_path, learner, max_samples=96, threads=2)) as run:
            assert torch.get_num_threads() == 2
            run.forget(offsets=(10, 30), id="r1")
            run.processor.forget()
    finally:
        torch.set_num_threads(before)
    figures = receipt(tmp_path)["figures"]
    assert receipt(tmp_path)["guarantee"] == "exact"
    assert figures["features_compared"] == 20
    assert figures["feature_drift"] <= 1e-5


def test_an_earlier_export_in_the_run_directory_is_removed_and_copies_are_said_to_be_out_of_reach(tmp_path):
    with open_run(configuration(tmp_path, HYBRID, max_samples=96)) as run:
        list(run)
    assert call("export", tmp_path / "run")[0] == 0
    assert call("export", tmp_path / "run", "--out", tmp_path / "elsewhere")[0] == 0
    with open_run(configuration(tmp_path, HYBRID, max_samples=96)) as run:
        run.forget(offsets=(64, 70), id="r1")
        run.processor.forget()
        assert not (tmp_path / "run" / "adapter").exists()  # the end of the block writes another one
    assert (tmp_path / "elsewhere").exists()
    exports = places(tmp_path)["exports"]
    assert exports["status"] == "erased"
    assert exports["explanation"] == "adapter removed; copies made elsewhere are not reachable"
