"""streamcl audit on run directories: what was erased is found by the receipt's hashes, and judged."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from audit_runs import LABELS, configuration
from click.testing import CliRunner
from indexed_pictures import PICTURE_SOURCE
from log_messages import logged

from streamcl.audit import run as audit_module
from streamcl.audit.data import AuditConfig
from streamcl.audit.report import save_audit, text_table
from streamcl.cli import cli
from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.receipts.archive import ReceiptArchive
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.report.page import write_report
from streamcl.runs.open import execute_pending, open_run

REFUSED = {
    "kind": "class",
    "received": 1.0,
    "completed": 2.0,
    "deadline": None,
    "offset": 0,
    "on_return": "drop",
}
QUICK = AuditConfig(references=16, false_alarm_rate=0.05, permutations=299, max_samples=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    with open_run(configuration(folder, {"name": "ridge", "trace_ridge": 0.001})) as run:
        for _ in run:
            pass
        run.finish()
    return folder / "run"


@pytest.fixture(scope="module")
def forgotten(finished):
    """The same run after two requests: 30 samples, then a class."""
    from streamcl.forgetting.ledger.ledger import LEDGER, Ledger

    with Ledger(finished / LEDGER) as ledger:
        ledger.submit(ForgetRequest(offsets=(10, 40), id="thirty").model_dump(mode="json"))
        ledger.submit(ForgetRequest(label="2", id="class").model_dump(mode="json"))
    execute_pending(finished)
    return finished


@pytest.mark.long
@pytest.mark.parametrize("request_id", ["thirty", "class"])
def test_an_erasure_carried_out_by_a_run_passes(forgotten, request_id):
    with logged() as messages:
        report = audit_module.audit_run(forgotten, request=request_id, config=QUICK)
    assert messages == [], "every forgotten sample is found again"
    assert report.verdict != "fail", text_table(report)
    assert report.statistics_error < 1e-5
    assert report.kind == ("class" if request_id == "class" else "samples")
    assert report.request == request_id


def test_counts_are_those_of_the_stream(forgotten):
    report = audit_module.audit_run(forgotten, config=replace(QUICK, references=8))
    paths = {name: forgotten / "receipts" / f"{name}.json" for name in ("thirty", "class")}
    receipts = {name: json.loads(path.read_text()) for name, path in paths.items()}
    assert receipts["thirty"]["scope"]["learned"] == 30
    erased = {name: content["scope"]["learned"] for name, content in receipts.items()}
    assert report.request == "class"
    assert report.counts["forget"] == erased["class"]
    assert report.counts["retain"] == 200 - erased["thirty"] - erased["class"]


def test_a_run_that_kept_what_its_receipt_says_it_erased_fails(forgotten, monkeypatch):
    """The learner has the thirty samples again, and the receipt says that they are gone."""
    loaded = audit_module.load_run(forgotten)
    learner, config = loaded.learner, loaded.config
    with closing(audit_module.build_source(config)) as source:
        samples = [sample for batch in source for sample in batch.samples][10:40]
    learner.learn(Batch(0, tuple(sample for sample in samples if sample.label != "2")))
    monkeypatch.setattr(audit_module, "load_run", lambda *_, **__: loaded)
    report = audit_module.audit_run(forgotten, request="thirty", config=QUICK)
    assert report.statistics_error > 1e-3
    assert report.verdict == "fail" or not report.unforgotten_detected, text_table(report)


@pytest.mark.long
def test_the_command_prints_a_table_or_json_and_leaves_a_file(forgotten):
    table = CliRunner().invoke(cli, ["audit", str(forgotten), "--request", "thirty", "--references", "8"])
    assert table.exit_code == 0, table.output
    assert "forget accuracy" in table.output
    shown = CliRunner().invoke(cli, ["audit", str(forgotten), "--references", "8", "--json"])
    assert json.loads(shown.stdout)["request"] == "class"
    saved = (forgotten / "audits" / "class.json").read_text()
    assert json.loads(saved)["audit"] == json.loads(shown.stdout)
    assert json.loads(saved)["audit"]["verdict"] == "pass"
    assert not any(f"sample-{k}" in saved for k in range(3))


def test_an_unknown_request_names_those_that_are_known(forgotten):
    with pytest.raises(ForgettingError, match="no receipt of an erasure by the request 'other'") as caught:
        audit_module.audit_run(forgotten, request="other")
    assert "thirty" in caught.value.hint


def unsplit(folder, **evaluate):
    """A run over 160 pictures, read by index, that was made to forget 40 of them."""
    config = configuration(folder, {"name": "ridge", "trace_ridge": 0.001})
    del config["scenario"]
    source = PICTURE_SOURCE | {"args": {"labels": list(LABELS), "prefix": "s"}}
    config |= {"source": source, "evaluate": evaluate}
    with open_run(config) as run:
        list(run)
        run.forget(offsets=(90, 130), id="forty")
        run.processor.forget()
        return run.folder, [sample.id for sample in run.processor.parts.held_out]


@pytest.mark.long
def test_an_erasure_is_audited_on_samples_that_the_run_held_out_of_its_stream(tmp_path):
    folder, held_out = unsplit(tmp_path, hold_out="30%")
    receipt = json.loads((folder / "receipts" / "forty.json").read_text())
    with logged() as messages:
        report = audit_module.audit_run(folder, config=QUICK)
    assert messages == [], "held-out samples do not count as forgotten"
    assert report.verdict != "fail", text_table(report)
    assert report.statistics_error < 1e-5
    assert report.counts["test"] == len(held_out) > 0
    assert report.counts["forget"] == receipt["scope"]["learned"] < receipt["scope"]["passed"] == 40
    assert len(receipt["scope"]["unlearned"]) == 40 - receipt["scope"]["learned"]


def test_an_audit_without_held_out_samples_says_so_before_it_reads_the_stream(tmp_path, monkeypatch):
    folder, _ = unsplit(tmp_path, hold_out=0)
    monkeypatch.setattr(audit_module, "batches_to_audit", None)
    with pytest.raises(ForgettingError, match="no held-out samples") as caught:
        audit_module.audit_run(folder, config=QUICK)
    assert "evaluate.hold_out" in caught.value.hint


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """The default learner over the pictures: adapted on the first 48, then asked to forget 30 later ones."""
    folder = tmp_path_factory.mktemp("hybrid")
    config = configuration(folder, {"name": "ridge_lora", "lora": {"warmup_samples": 48}})
    with open_run(config) as run:
        for _ in run:
            pass
        run.forget(offsets=(100, 130), id="thirty")
        run.processor.forget()
        assert run.learner.adapted is not None
    return folder / "run"


def test_the_sum_of_a_hybrids_heads_is_audited_beside_references_that_share_its_adapters(hybrid):
    with logged() as messages:
        report = audit_module.audit_run(hybrid, config=QUICK)
    assert messages == [], "the beginning learned again is bit-equal, and every sample is found"
    assert report.statistics_error < 1e-9
    assert report.counts["retain"] == 170
    assert report.verdict != "fail", text_table(report)


def test_a_hybrid_that_forgot_in_its_exact_head_alone_is_seen(hybrid, monkeypatch):
    loaded = audit_module.load_run(hybrid)
    learner, config = loaded.learner, loaded.config
    with closing(audit_module.build_source(config)) as source:
        samples = [sample for batch in source for sample in batch.samples][100:130]
    _, kept = learner.statistics.of(samples).heads
    learner.adapted.head.merge(kept)
    monkeypatch.setattr(audit_module, "load_run", lambda *_, **__: loaded)
    report = audit_module.audit_run(hybrid, config=QUICK)
    assert report.statistics_error > 1e-3
    assert report.verdict == "fail" or not report.unforgotten_detected, text_table(report)


def test_an_audit_is_bound_to_its_receipt_and_verified_with_it(hybrid):
    report = audit_module.audit_run(hybrid, config=replace(QUICK, references=8))
    first, second = (save_audit(hybrid, report, clock=lambda: 5.0) for _ in range(2))
    receipt = hybrid / "receipts" / "thirty.json"
    lines = verify_receipt(receipt)
    assert [line for line in lines if "an audit belongs to it" in line] == [
        f"an audit belongs to it, number {k} of 2: {report.verdict}, compared with 8 retrained models"
        for k in (1, 2)
    ]
    assert json.loads(second.read_text())["audit"] == json.loads(json.dumps(report.to_json()))
    assert report.learner == json.loads(receipt.read_text())["learner_after"]
    assert "retrained without the data" in receipt.with_suffix(".html").read_text()
    whole = second.read_bytes()
    second.write_bytes(whole.replace(b'"verdict":', b'"Verdict":'))
    with pytest.raises(ForgettingError, match="has been changed"):
        verify_receipt(receipt)
    second.write_bytes(whole)
    first.unlink()
    with pytest.raises(ForgettingError, match="audit number 1 is missing"):
        verify_receipt(receipt)


def test_an_audit_taken_away_is_missed_by_the_next_receipt(hybrid):
    for path in (hybrid / "audits").glob("*.json"):
        path.unlink()
    report = audit_module.audit_run(hybrid, config=replace(QUICK, references=8))
    path = save_audit(hybrid, report)
    ReceiptArchive(hybrid).write(Receipt(request="later", outcome="done", **REFUSED))
    path.unlink()
    with pytest.raises(ForgettingError, match=r"an audit that later\.json refers to is missing"):
        verify_receipt(hybrid / "receipts" / "thirty.json")


def test_the_model_of_the_receipt_is_that_of_its_checkpoint(forgotten):
    newest = max(forgotten.glob("receipts/*.json"), key=lambda path: json.loads(path.read_text())["number"])
    lines = verify_receipt(newest)
    assert any("its model has the hash that the receipt names" in line for line in lines)
    assert any("accounts for 20 locations" in line for line in lines)
    assert json.loads(newest.read_text())["utility"]["samples"] > 0


def test_the_report_shows_requests_with_their_audits(forgotten):
    report = audit_module.audit_run(forgotten, config=replace(QUICK, references=8))
    save_audit(forgotten, report)
    text = write_report(forgotten).read_text()
    assert "Requests to forget" in text
    assert 'href="receipts/class.html"' in text
    assert f'<td data-name="audit">{report.verdict}</td>' in text
