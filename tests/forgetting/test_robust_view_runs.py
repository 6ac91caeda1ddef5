"""Runs that learn robust views: single samples and classes are erased exactly, and an audit agrees."""

import json

import pytest
from audit_runs import configuration

from streamcl.audit import run as audit_module
from streamcl.audit.data import AuditConfig
from streamcl.audit.report import text_table
from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.runs.open import execute_pending, open_run

pytestmark = pytest.mark.long
QUICK = AuditConfig(references=16, false_alarm_rate=0.05, permutations=299, max_samples=200)
LEARNERS = {
    "ridge": {"name": "ridge", "robust_share": 0.33},
    "ridge_lora": {
        "name": "ridge_lora",
        "ridge": {"robust_share": 0.33},
        "lora": {"warmup_samples": 24, "first_block": 1},
    },
}


@pytest.fixture(scope="module", params=LEARNERS)
def forgotten(request, tmp_path_factory):
    """A run after two erasures: 30 samples that are fetched, then a class by its stored sums."""
    folder = tmp_path_factory.mktemp("robust")
    config = configuration(folder, LEARNERS[request.param])
    config["forgetting"] = {"keep_statistics": "per_class"}
    with open_run(config) as run:
        for _ in run:
            pass
        run.finish()
    with Ledger(folder / "run" / LEDGER) as ledger:
        ledger.submit(ForgetRequest(offsets=(60, 90), id="thirty").model_dump(mode="json"))
        ledger.submit(ForgetRequest(label="2", id="class").model_dump(mode="json"))
    execute_pending(folder / "run")
    return folder / "run", request.param


def test_receipts_say_exact(forgotten):
    folder, learner = forgotten
    receipts = {
        name: json.loads((folder / "receipts" / f"{name}.json").read_text()) for name in ("thirty", "class")
    }
    assert receipts["thirty"]["outcome"] == receipts["class"]["outcome"] == "done"
    assert receipts["thirty"]["guarantee"] == "exact"
    if learner == "ridge":  # the class has trained adapters of the other
        assert receipts["class"]["guarantee"] == "exact"
        assert receipts["class"]["figures"]["from_stored_statistics"] > 0


def test_an_audit_finds_nothing_of_the_erased(forgotten):
    folder, learner = forgotten
    if learner == "ridge_lora":
        pytest.skip("its adapted branch was dropped with the class")
    report = audit_module.audit_run(folder, request="class", config=QUICK)
    assert report.verdict != "fail", text_table(report)
    assert report.statistics_error < 1e-5
