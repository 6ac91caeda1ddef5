"""Audits beside further runs of the stream: for learners without closed-form heads."""

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from audit_runs import configuration
from click.testing import CliRunner
from conditions import wait_for
from log_messages import logged

from streamcl.audit import run as audit_module
from streamcl.audit.data import AuditConfig
from streamcl.audit.report import text_table
from streamcl.audit.retraining import FOLDER_PREFIX, RelabelledSource, Retraining, remove_leftovers
from streamcl.audit.stream_split import retained_labels
from streamcl.benchmark.cells import SharedResources
from streamcl.cli import cli
from streamcl.events import Batch, ForgetRequest
from streamcl.factory.backbone import build_compute
from streamcl.runs.learner import load_learner, load_run
from streamcl.runs.open import open_run
from streamcl.storage.files import is_temporary
from streamcl.storage.plain_state import state_hash
from streamcl.testing import ScriptedSource

pytestmark = pytest.mark.long

LORA = {"name": "online_lora", "rank": 2, "hard_buffer_size": 4}
COHORTS = {
    "name": "cohort_adapters",
    "cohort_by": "offset_range",
    "records_per_cohort": 20,
    "lora": {"warmup_samples": 16},
}
END = 56
COUNT = 80  # pictures; the second half, from offset 40 on, brings two classes of its own
CONFIG = AuditConfig(reruns=8, false_alarm_rate=0.05, permutations=299, max_samples=40)


def finished(folder, learner, **request):
    """A run over pictures, asked for one thing at its end, or for nothing."""
    with open_run({**configuration(folder, learner, COUNT), "max_samples": END}) as run:
        for _ in run:
            pass
        if request:
            run.forget(**request, id="asked")
            run.processor.forget()
            receipt = json.loads((folder / "run" / "receipts" / "asked.json").read_text())
            assert receipt["outcome"] == "done", receipt["reason"]
        run.finish()
    return folder / "run"


def again(folder):
    """Further runs of the run's stream, and its own learner."""
    shared = SharedResources()
    learner, config = load_learner(folder, vit=shared.backbone)
    return Retraining(config, folder, shared.backbone(config, build_compute(config)), END), learner


def temporaries(folder):
    return [path for path in folder.iterdir() if is_temporary(path)]


def test_a_relabelled_stream_lacks_labels_and_requests_but_no_record():
    source = ScriptedSource([8, ForgetRequest(id="own", offset=8, ids=("nobody",)), 8, 8])
    asked = ForgetRequest(id="asked", offset=8, ids=("nobody",))
    events = list(RelabelledSource(source, {0: "a", 9: "b", 20: "c"}.get, 16, asked))
    assert [type(event) for event in events] == [Batch, ForgetRequest, Batch]
    assert events[1] is asked
    labels = [sample.label for event in (events[0], events[2]) for sample in event.samples]
    assert labels == ["a", *[None] * 8, "b", *[None] * 6]


def test_a_request_past_the_last_batch_comes_at_the_end():
    asked = ForgetRequest(id="asked", offset=16, ids=("nobody",))
    events = list(RelabelledSource(ScriptedSource([8, 8]), {}.get, 16, asked))
    assert events[-1] is asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was asked to forget nothing."""
    return finished(tmp_path_factory.mktemp("whole"), LORA)


def test_the_same_stream_run_again_gives_the_same_model_to_the_bit(whole):
    runs, learner = again(whole)
    labels = retained_labels(whole)
    first = runs.run(labels.get, lambda model: state_hash(model.state_dict()))
    assert first == state_hash(learner.state_dict())
    without = {offset: label for offset, label in labels.items() if offset not in range(8, 16)}
    assert runs.run(without.get, lambda model: state_hash(model.state_dict())) != first
    assert runs.run(labels.get, lambda model: state_hash(model.state_dict())) == first


def test_nothing_of_further_runs_stays_behind(whole):
    runs, _ = again(whole)
    seen = []
    with pytest.raises(RuntimeError, match="in the midst"):
        runs.run({}.get, lambda model: seen.extend(temporaries(whole)) or failing())
    assert seen
    assert not temporaries(whole)


def test_what_a_killed_audit_left_goes_and_what_another_needs_stays(whole):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [whole / f"{FOLDER_PREFIX}{number}-abc" for number in (ended.pid, os.getpid(), "odd")]
    for path in left:
        path.mkdir()
    remove_leftovers(whole)
    assert [path.exists() for path in left] == [False, True, False]
    left[1].rmdir()


@pytest.mark.slow
def test_a_terminated_audit_leaves_nothing_behind(tmp_path):
    folder = finished(tmp_path, LORA, label="1", method="head_only")
    command = [sys.executable, "-m", "streamcl", "audit", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: temporaries(folder))
    process.terminate()
    assert process.wait(timeout=300) == 143
    assert not temporaries(folder)


def failing():
    raise RuntimeError("in the midst")


def test_a_run_that_could_not_forget_again_gives_no_model(whole):
    runs, _ = again(whole)
    nobody = ForgetRequest(id="audit", offset=64, label="1", guarantee="exact")
    assert runs.run(retained_labels(whole).get, lambda model: model, nobody) is None


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """A cohort with an adapter of its own, dropped whole; nobody else has brought its classes."""
    return finished(tmp_path_factory.mktemp("dropped"), COHORTS, offsets=(40, 60))


def test_a_dropped_cohort_passes_beside_runs_that_never_saw_it(dropped):
    with logged() as messages:
        report = audit_module.audit_run(dropped, config=CONFIG)
    assert report.verdict != "fail", text_table(report)
    assert report.counts["forget"] == END - 40
    assert report.counts["retain"] == 40
    assert report.models == {"audited": 1, "references": 8, "unforgotten": 8, "forgotten again": 8}
    assert report.unforgotten_detected
    assert report.unforgotten_failing == 1.0, "each that never forgot fails, pushed through the audit alone"
    assert report.references_failing < 0.3
    assert report.reruns == 26, "25, and one in which single samples could not be forgotten"
    assert len(messages) == 27, messages
    assert {"U-LiRA", "relearn time, log2 samples", "RMIA"} <= {each.measure for each in report.results}
    assert not temporaries(dropped)


@pytest.mark.slow
def test_a_cohort_that_was_never_dropped_fails(dropped, monkeypatch):
    """The receipt says that it is gone, and the learner still has it."""
    kept = dict(retained_labels(dropped))
    with closing(audit_module.build_source(load_learner(dropped)[1])) as source:
        samples = [sample for batch in source for sample in batch.samples]
    kept |= {offset: samples[offset].label for offset in range(40, END)}
    runs, _ = again(dropped)
    learner = runs.run(kept.get, lambda model: model)
    loaded = replace(load_run(dropped), learner=learner)
    monkeypatch.setattr(audit_module, "load_run", lambda *_, **__: loaded)
    report = audit_module.audit_run(dropped, config=CONFIG)
    assert report.unforgotten_detected, text_table(report)
    assert report.verdict == "fail", text_table(report)


@pytest.mark.slow
def test_sums_can_be_audited_beside_further_runs_too(tmp_path):
    folder = finished(tmp_path, {"name": "ridge", "trace_ridge": 0.001}, offsets=(10, 40))
    with logged() as messages:
        report = audit_module.audit_run(folder, config=CONFIG, retrain=True)
    assert report.verdict != "fail", text_table(report)
    confusion = next(each for each in report.results if each.measure == "interclass confusion")
    assert confusion.value == pytest.approx(confusion.reference_mean, abs=0.05)
    assert confusion.unforgotten > confusion.reference_mean + 0.05, "learned before it was erased"
    assert report.reruns == len(messages) == 41, messages


@pytest.mark.slow
def test_a_class_whose_row_alone_went_is_audited_from_the_command_line(tmp_path):
    folder = finished(tmp_path, LORA, label="1", method="head_only")
    shown = CliRunner().invoke(cli, ["audit", str(folder), "--json"], standalone_mode=False)
    report = json.loads(shown.stdout)
    assert shown.return_value == (6 if report["verdict"] == "fail" else 0), shown.output
    assert report["kind"] == "class"
    assert report["reruns"] == 41
    measures = {each["measure"] for each in report["results"]}
    assert {"neighbour class", "U-LiRA", "KLoM, forget", "interclass confusion"} <= measures
    saved = (folder / "audits" / "asked.json").read_text()
    assert json.loads(saved)["audit"] == report
