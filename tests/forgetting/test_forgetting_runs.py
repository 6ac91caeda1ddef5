"""Forgetting in real runs, by the command line and from Python, with the learners that are shipped."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from forgetting_fakes import holds
from PIL import Image
from tiny_runs import call, configuration

from streamcl.cli import cli
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.ledger.requests import refuse_unmatched
from streamcl.forgetting.receipts.archive import read_receipt
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash

HARD = {"name": "online_lora", "hard_buffer_size": 4}


def seen(folder):
    """The ids, by label, that the run's log holds."""
    found = {}
    for line in (folder / "run" / "predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "id" in record:
            found.setdefault(record["label"], []).append(record["id"])
    return found


def entries(run):
    with Ledger(run / LEDGER) as ledger:
        return ledger.entries()


@pytest.fixture
def stopped(tmp_path):
    """A run that stopped half-way."""
    with open_run(configuration(tmp_path)) as run:
        for prediction in run:
            if prediction.offset == 79:
                run.processor.stop()
    return tmp_path


def test_a_stopped_run_carries_a_request_out_at_once(stopped):
    gone = seen(stopped)["4"][:3]
    (stopped / "ids.txt").write_text("\n".join(gone))
    code, text = call(
        "forget", stopped / "run", "--ids", stopped / "ids.txt", "--guarantee", "exact", "--execute"
    )
    assert code == 0, text
    assert "done: exact, by closed_form" in text
    assert holds(stopped / "run", *gone) == {}
    (receipt,) = (stopped / "run" / "receipts").glob("*.json")
    assert call("verify", receipt) == call("verify", stopped / "run")
    assert call("verify", receipt)[0] == 0
    receipt.write_bytes(receipt.read_bytes().replace(b'"exact"', b'"Exact"'))
    assert call("verify", receipt)[0] == 6


def test_a_request_to_a_stopped_run_is_carried_out_when_it_goes_on(stopped):
    asked = ("forget", stopped / "run", "--class", "4", "--key", "letter", "--deadline", "2030-01-31")
    code, text = call(*asked)
    request = text.strip()
    assert code == 0, text
    assert call(*asked) == (0, text)  # the same key is the same request
    assert call("forget", stopped / "run", "--class", "7", "--key", "letter")[0] == 6
    with open_run(configuration(stopped)) as run:
        predictions = list(run)
        assert "4" not in run.learner.classes
        run.finish()
    assert {p.predicted for p in predictions if p.offset >= 80} & {"4"} == set()
    assert json.loads((stopped / "run" / "receipts" / f"{request}.json").read_text())["offset"] == 80
    summary = json.loads((stopped / "run" / "summary.json").read_text())
    assert "4" not in summary["prequential"]["per_class"]


def test_the_result_is_that_of_the_run_without_the_samples(tmp_path):
    """The whole way through a run directory, against the head that never saw them."""
    with open_run(configuration(tmp_path / "a")) as run:
        predictions = list(run)
        gone = [p.id for p in predictions if p.label == "4"]
        run.forget(label="4")
        run.processor.forget()
        rest = [p.id for p in predictions if p.label != "4"]
        forgotten = run.learner.head.statistics
        with open_run(configuration(tmp_path / "b", max_samples=1)) as other:
            fresh = other.learner
            samples = list(run.source.fetch(rest))
            from streamcl.events import Batch

            fresh.learn(Batch(0, tuple(samples)))
            never = fresh.head.statistics
            full = never.gram.full()
            assert float((forgotten.gram.full() - full).abs().max() / full.abs().max()) <= 1e-9
            assert len(gone) > 10


def test_what_cannot_be_is_refused_with_the_reason(stopped):
    code, text = call("forget", stopped / "run", "--class", "cta", "--execute")
    assert code == 6
    assert "no sample of the class 'cta' has passed" in text
    assert call("forget", stopped / "run")[0] == 6
    assert call("forget", stopped / "run", "--offsets", "a:b")[0] == 6
    assert call("forget", stopped / "run", "--class", "4", "--deadline", "soon")[0] == 6
    assert call("forget", stopped, "--class", "4")[0] == 2


def test_a_running_process_holds_the_run_and_the_request_waits_for_it(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        asked = False
        for prediction in run:
            if prediction.offset == 40 and not asked:
                asked = True
                code, text = call("forget", run.folder, "--class", "4")
                assert code == 0, text
                _, text = call("forget", run.folder, "--class", "1", "--execute", "--wait", "0.2")
                assert "not carried out yet" in text  # this process does it, before its next batch
        assert not {"4", "1"} & set(run.learner.classes)


def test_scheduled_requests_are_not_kept_in_the_configuration(tmp_path):
    forget = [{"offset": 32, "subject": "Ada Lovelace"}, {"offset": 64, "class": 4}]
    with open_run(configuration(tmp_path, forgetting={"requests": forget})) as run:
        list(run)
    assert holds(tmp_path, "Ada Lovelace") == {}
    with open_run(configuration(tmp_path, forgetting={"requests": forget})) as again:
        assert again.processor.progress.finished


def test_a_finished_run_carries_requests_out_when_it_is_opened(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        list(run)
        run.finish()
    assert call("forget", run.folder, "--class", "4", "--key", "k")[0] == 0
    with open_run(configuration(tmp_path)) as again:
        assert "4" not in again.learner.classes
        assert not (again.folder / "summary.json").exists()
        assert "4" not in again.finish()["prequential"]["per_class"]


def test_shared_lora_that_is_not_replayed_is_never_called_exact(tmp_path):
    with open_run(configuration(tmp_path, learner=HARD, forgetting={"max_replay": 0})) as run:
        for prediction in run:
            if prediction.offset == 79:
                run.forget(label="4", guarantee="exact", id="r1")
                run.forget(label="4", id="r2")
                held = {sample.label for sample in run.learner.buffer.samples}
        assert "4" not in run.learner.classes
        assert "4" not in {sample.label for sample in run.learner.buffer.samples}
        assert held
    first = json.loads((run.folder / "receipts" / "r1.json").read_text())
    assert first["outcome"] == "refused"
    assert "adapters, head, importance" in first["reason"] or "not a sum" in first["reason"]
    second = json.loads((run.folder / "receipts" / "r2.json").read_text())
    assert second["guarantee"] == "approximate"
    assert "were not repaired" in second["residual"]
    rows = {place["name"]: place["status"] for place in second["locations"]}
    assert (rows["adapters"], rows["head statistics"]) == ("remains", "erased")


def test_dropping_a_class_leaves_the_other_rows_as_they_were(tmp_path):
    with open_run(configuration(tmp_path, learner=HARD, max_samples=64)) as run:
        list(run)
        learner = run.learner
        keep = [i for i, name in enumerate(learner.classes) if name != learner.classes[0]]
        weight = learner.head.weight.detach()[keep].clone()
        learner.drop_class(learner.classes[0])
        assert learner.head.weight.detach().equal(weight)
        state = learner.state_dict()
        learner.load_state_dict(state)
        assert state_hash(learner.state_dict()) == state_hash(state)
        held = {id(p) for group in learner.model.optimizer.param_groups for p in group["params"]}
        assert {id(learner.head.weight), id(learner.head.bias)} <= held
        with pytest.raises(ForgettingError, match="no such class"):
            learner.drop_class("never")


@pytest.mark.long
@pytest.mark.parametrize("learner", ["ridge", "ridge_lora", "ncm", "slda", "reconstruct"])
def test_after_every_sample_is_erased_no_class_is_predicted(tmp_path, learner):
    with open_run(configuration(tmp_path, learner=learner, max_samples=80)) as run:
        sample = next(run.source.fetch([next(iter(run)).id]))
        for _ in run:
            pass
    code, text = call("forget", tmp_path / "run", "--offsets", "0:80", "--execute")
    assert code == 0, text
    Image.fromarray(sample.image).save(tmp_path / "q.png")
    code, text = call("predict", tmp_path / "run", tmp_path / "q.png", "--json")
    answer = json.loads(text, parse_constant=pytest.fail)
    assert (answer["class"], answer["confidence"]) == (None, 0.0)
    assert "no class" in call("predict", tmp_path / "run", tmp_path / "q.png")[1]
    with open_run(configuration(tmp_path, learner=learner, max_samples=112)) as run:
        later = list(run)
        assert [(each.predicted, each.confidence) for each in later[:16]] == [(None, 0.0)] * 16
        assert {each.predicted for each in later[16:]} <= {each.label for each in later[:16]} | {None}
        assert any(each.predicted for each in later[16:])


def test_an_unknown_name_is_answered_at_once(stopped):
    code, text = call("forget", stopped / "run", "--class", "44")
    assert (code, text) == (6, "no sample of the class '44' has passed, or all were erased")
    with pytest.raises(ForgettingError) as caught:
        refuse_unmatched(stopped / "run", ForgetRequest(label="44"))
    assert caught.value.hint == "did you mean '4'? --unseen submits it for records to come"
    with pytest.raises(ForgettingError) as caught:
        refuse_unmatched(stopped / "run", ForgetRequest(label="hen"))
    assert "; --unseen submits it for records to come" in str(caught.value.hint)
    with pytest.raises(ForgettingError) as caught:
        refuse_unmatched(stopped / "run", ForgetRequest(subject="nobody"))
    assert "check the spelling" in str(caught.value.hint)
    assert call("forget", stopped / "run", "--subject", "nobody")[0] == 6
    assert call("forget", stopped / "run", "--offsets", "9000:9001")[0] == 6
    assert entries(stopped / "run") == []
    code, text = call("forget", stopped / "run", "--subject", "nobody", "--unseen", "--key", "k")
    assert code == 0, text
    assert call("forget", stopped / "run", "--subject", "nobody", "--key", "k") == (0, text)


def test_a_wait_that_was_too_short_has_a_code_of_its_own(stopped):
    command = ["forget", str(stopped / "run"), "--class", "4", "--wait", "0.1"]
    result = CliRunner().invoke(cli, command, standalone_mode=False)
    assert (result.return_value, result.output.splitlines()[1]) == (8, "received, not carried out yet")


def test_a_refusal_is_one_sentence_and_the_receipt_has_the_reasons(tmp_path):
    once = {"max_samples": 32, "forgetting": {"max_replay": 0}}
    with open_run(configuration(tmp_path, learner=HARD, **once)) as run:
        list(run)
    code, text = call("forget", tmp_path / "run", "--class", "4", "--guarantee", "exact", "--execute")
    assert (code, text) == (6, "refused: no method can erase this with the guarantee exact")
    receipt = read_receipt(next((tmp_path / "run" / "receipts").glob("*.json")))
    assert "closed_form: " in receipt.reason


@pytest.mark.long
def test_executing_beside_a_running_process_waits_for_it(tmp_path):
    command = [sys.executable, "-m", "streamcl", "forget", tmp_path / "run", "--class", "4", "--execute"]
    with (tmp_path / "err").open("w") as err, open_run(configuration(tmp_path)) as run:
        for prediction in run:
            if prediction.offset == 79:
                asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
                while "waiting for process" not in (tmp_path / "err").read_text():
                    assert asked.poll() is None
                    time.sleep(0.05)
    out, _ = asked.communicate(timeout=120)
    assert asked.returncode == 0
    assert "done: " in out
