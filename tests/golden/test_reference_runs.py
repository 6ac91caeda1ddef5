"""The reference runs come to the figures that they came to before, on any processor."""

import json
from pathlib import Path

import pytest
import reference_runs

EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text())
"""What holds across processors; written by `reference_runs.py --approx`, see there."""

QUICK = {
    "learner/ridge",
    "learner/online_lora",
    "stopped/hybrid-relative",
    "forget/ridge-asked",
    "forget/hybrid-kept-class",
    "forget/gs-lora-class",
    "forget/latents",
}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in reference_runs.RUNS],
)
def test_a_reference_run_comes_to_what_it_came_to(name, tmp_path):
    found = reference_runs.RUNS[name](tmp_path)["approx"]
    expected = EXPECTED[name]
    assert {key: found[key] for key in expected} == expected


def test_every_run_is_expected():
    assert set(EXPECTED) == set(reference_runs.RUNS)
    assert set(reference_runs.RUNS) >= QUICK


def test_names_and_order_of_keys_do_not_count():
    one = {"a": [1.0, "x"], "b": {"c": None}}
    other = {"second": {"d": None}, "first": ("x", 1.0)}
    assert reference_runs.fingerprint(one) == reference_runs.fingerprint(other)
    assert reference_runs.fingerprint(one) != reference_runs.fingerprint({**one, "a": [1.5, "x"]})


def test_a_difference_is_named_and_a_renamed_word_is_none(tmp_path, capsys):
    now = {"run": {"receipts": [{"method": "new"}], "log": "1"}}
    (before := tmp_path / "before.json").write_text(
        json.dumps({"run": {"receipts": [{"method": "old"}], "log": "1"}})
    )
    assert reference_runs.compared(now, before, ["old=new"], whole=True) == 0
    assert reference_runs.compared(now, before, [], whole=True) == 1
    assert 'run: receipts[0]: method: was "old", is "new"' in capsys.readouterr().out
