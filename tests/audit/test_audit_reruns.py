"""Audits beside further runs of the stream: for learners whose knowledge is not in sums."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing

import pytest
from audit_runs import configuration
from click.testing import CliRunner
from log_messages import logged

from streamcl.audit import Plan, text_table
from streamcl.audit import run as adapter
from streamcl.audit.retold import Retold
from streamcl.audit.retraining import MARK, Reruns, sweep_killed
from streamcl.audit.scope import kept_by
from streamcl.benchmark.cell import Shared
from streamcl.cli import cli
from streamcl.events import Batch, ForgetRequest
from streamcl.factory.compute import build_compute
from streamcl.runs.load import load_learner
from streamcl.runs.open import open_run
from streamcl.storage.files import is_temporary
from streamcl.storage.plain_state import state_hash
from streamcl.testing import ScriptedSource

LORA = {"name": "online_lora", "rank": 2}
COHORTS = {"name": "cohorts", "by": "stretch", "stretch": 50, "lora": {"adapt": 16}}
END = 140
PLAN = Plan(reruns=8, rate=0.05, deals=299, looked_at=40)


def finished(folder, learner, **request):
    """A run over pictures, asked for one thing at its end, or for nothing."""
    with open_run({**configuration(folder, learner), "limit": END}) as run:
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
    shared = Shared()
    learner, config = load_learner(folder, vit=shared.backbone)
    return Reruns(config, folder, shared.backbone(config, build_compute(config)), END), learner


def temporaries(folder):
    return [path for path in folder.iterdir() if is_temporary(path)]


def test_a_stream_told_again_lacks_labels_and_requests_but_no_record():
    source = ScriptedSource([8, ForgetRequest("own", "samples", 8), 8, 8])
    asked = ForgetRequest("asked", "samples", 8)
    told = list(Retold(source, {0: "a", 9: "b", 20: "c"}.get, 16, asked))
    assert [type(event) for event in told] == [Batch, ForgetRequest, Batch]
    assert told[1] is asked
    labels = [sample.label for event in (told[0], told[2]) for sample in event.samples]
    assert labels == ["a", *[None] * 8, "b", *[None] * 6]


def test_a_request_past_the_last_batch_comes_at_the_end():
    asked = ForgetRequest("asked", "samples", 16)
    told = list(Retold(ScriptedSource([8, 8]), {}.get, 16, asked))
    assert told[-1] is asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was asked to forget nothing."""
    return finished(tmp_path_factory.mktemp("whole"), LORA)


def test_the_same_stream_run_again_gives_the_same_model_to_the_bit(whole):
    runs, learner = again(whole)
    first = runs.model(kept_by(whole).get, lambda model: state_hash(model.state_dict()))
    assert first == state_hash(learner.state_dict())
    without = {offset: label for offset, label in kept_by(whole).items() if offset not in range(8, 16)}
    assert runs.model(without.get, lambda model: state_hash(model.state_dict())) != first
    assert runs.model(kept_by(whole).get, lambda model: state_hash(model.state_dict())) == first


def test_nothing_of_further_runs_stays_behind(whole):
    runs, _ = again(whole)
    seen = []
    with pytest.raises(RuntimeError, match="in the midst"):
        runs.model({}.get, lambda model: seen.extend(temporaries(whole)) or failing())
    assert seen
    assert not temporaries(whole)


def test_what_a_killed_audit_left_goes_and_what_another_needs_stays(whole):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [whole / f"{MARK}{number}-abc" for number in (ended.pid, os.getpid(), "odd")]
    for path in left:
        path.mkdir()
    sweep_killed(whole)
    assert [path.exists() for path in left] == [False, True, False]
    left[1].rmdir()


@pytest.mark.slow
def test_a_terminated_audit_leaves_nothing_behind(tmp_path):
    folder = finished(tmp_path, LORA, label="1", method="head_rows")
    command = [sys.executable, "-m", "streamcl", "audit", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not temporaries(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert not temporaries(folder)


def failing():
    raise RuntimeError("in the midst")


def test_a_run_that_could_not_forget_again_gives_no_model(whole):
    runs, _ = again(whole)
    nobody = ForgetRequest("audit", "class", 64, label="1", guarantee="exact")
    assert runs.model(kept_by(whole).get, lambda model: model, nobody) is None


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """A cohort with an adapter of its own, dropped whole; nobody else has brought its classes."""
    return finished(tmp_path_factory.mktemp("dropped"), COHORTS, offsets=(100, 150))


def test_a_dropped_cohort_passes_beside_runs_that_never_saw_it(dropped):
    with logged() as said:
        report = adapter.audit_run(dropped, plan=PLAN)
    assert report.verdict != "fail", text_table(report)
    assert report.counts["forget"] == END - 100
    assert report.counts["retain"] == 100
    assert report.models == {"audited": 1, "references": 8, "unforgotten": 8, "forgotten again": 8}
    assert report.unforgotten_seen
    assert report.unforgotten_failing == 1.0, "each that never forgot fails, pushed through the audit alone"
    assert report.references_failing < 0.3
    assert report.reruns == 26, "25, and one in which single samples could not be forgotten"
    assert len(said) == 27, said
    assert {"U-LiRA", "relearn time, log2 samples", "RMIA"} <= {each.measure for each in report.findings}
    assert not temporaries(dropped)


@pytest.mark.slow
def test_a_cohort_that_was_never_dropped_fails(dropped, monkeypatch):
    """The receipt says that it is gone, and the learner still has it."""
    kept = dict(kept_by(dropped))
    with closing(adapter.build_source(load_learner(dropped)[1])) as source:
        samples = [sample for batch in source for sample in batch.samples]
    kept |= {offset: samples[offset].label for offset in range(100, END)}
    runs, _ = again(dropped)
    learner = runs.model(kept.get, lambda model: model)
    config = load_learner(dropped)[1]
    monkeypatch.setattr(adapter, "load_learner", lambda *_, **__: (learner, config))
    report = adapter.audit_run(dropped, plan=PLAN)
    assert report.unforgotten_seen, text_table(report)
    assert report.verdict == "fail", text_table(report)


def test_sums_can_be_audited_beside_further_runs_too(tmp_path):
    folder = finished(tmp_path, {"name": "ridge", "relative_lambda": 0.001}, offsets=(10, 40))
    with logged() as said:
        report = adapter.audit_run(folder, plan=PLAN, rerun=True)
    assert report.verdict != "fail", text_table(report)
    confusion = next(each for each in report.findings if each.measure == "interclass confusion")
    assert confusion.value == pytest.approx(confusion.mean, abs=0.05)
    assert confusion.unforgotten > confusion.mean + 0.05, "the mix-up was learned before it was forgotten"
    assert report.reruns == len(said) == 41, said


def test_a_class_whose_row_alone_went_is_audited_from_the_command_line(tmp_path):
    folder = finished(tmp_path, LORA, label="1", method="head_rows")
    shown = CliRunner().invoke(cli, ["audit", str(folder), "--json"])
    assert shown.exit_code in {0, 6}, shown.output
    report = json.loads(shown.stdout)
    assert report["kind"] == "class"
    assert report["reruns"] == 41
    measures = {each["measure"] for each in report["findings"]}
    assert {"neighbour class", "U-LiRA", "KLoM, forget", "interclass confusion"} <= measures
    saved = (folder / "audits" / "asked.json").read_text()
    assert json.loads(saved)["audit"] == report
