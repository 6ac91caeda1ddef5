"""Requests that failed are asked again, with a receipt for each attempt; deadlines that pass are told."""

import json
import os
import signal

import pytest
from forgetting_fakes import Opened
from tiny_runs import call, configuration

from streamcl.errors import BadRecord, ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting import service as module
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.runs.doctor import check_run
from streamcl.runs.open import open_run
from streamcl.storage.checkpoint import Checkpoints
from streamcl.testing import ScriptedSource, in_child, record_id


class Broken(ScriptedSource):
    """Brings nothing back while it is broken."""

    broken = True

    def fetch(self, wanted):
        if self.broken:
            raise BadRecord("the archive is not mounted")
        return super().fetch(wanted)


def receipts(folder, name="r1"):
    return [each.to_json() for _, each in read_receipts(folder) if each.request == name]


def events(folder, kind):
    found = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [each for each in found if each["kind"] == kind]


def failed(folder, **options):
    """A run that stopped after a request had failed."""
    source = Broken([4] * 6)
    with Opened(
        folder, source, schedule=[ForgetRequest(ids=[record_id(1)], offset=8, id="r1", **options)]
    ) as run:
        for prediction in run.processor.run():
            if prediction.offset == 13:
                run.processor.stop()
        assert run.ledger.entry("r1").status == "failed"


def go_on(folder, broken=False):
    source = Broken([4] * 6)
    source.broken = broken
    with Opened(folder, source) as run:
        run.run()
        return run.learner.consumed


@pytest.mark.parametrize("name", ["r1", "letter 7"])
def test_a_failed_request_is_tried_again_by_id_or_key(tmp_path, name):
    failed(tmp_path, key="letter 7")
    with Ledger(tmp_path / LEDGER) as ledger:
        assert ledger.retry(ledger.find(name).id).status == "received"
        assert ledger.retry("r1").status == "received"  # pending already
    first = tmp_path / "receipts" / "r1.json"
    assert "it has been requested again" in " ".join(verify_receipt(first))
    assert record_id(1) not in go_on(tmp_path)
    assert [(each["outcome"], each["attempt"]) for each in receipts(tmp_path)] == [
        ("failed", 1),
        ("done", 2),
    ]
    assert "tried again" in " ".join(verify_receipt(first))
    assert "the ledger says done too" in verify_receipt(tmp_path / "receipts" / "r1~2.json")


def test_it_may_fail_again_and_again(tmp_path):
    failed(tmp_path)
    for _ in range(2):
        with Ledger(tmp_path / LEDGER) as ledger:
            ledger.retry("r1")
        go_on(tmp_path, broken=True)
    assert [each["outcome"] for each in receipts(tmp_path)] == ["failed"] * 3
    verify_receipt(tmp_path / "receipts" / "r1~3.json")


def test_what_is_over_is_not_tried_again(tmp_path):
    schedule = [
        ForgetRequest(ids=[record_id(1)], offset=4, id="r1"),
        ForgetRequest(label="none", offset=4, id="r2"),
    ]
    with Opened(tmp_path, ScriptedSource([4] * 4), schedule=schedule) as run:
        run.run()
        for name, status in (("r1", "done"), ("r2", "refused")):
            with pytest.raises(ForgettingError, match=f"is {status}, and only a failed request"):
                run.forgetting.retry(name)
        with pytest.raises(ForgettingError, match="there is no request"):
            run.forgetting.retry("r3")


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["before the commit", "before the receipt", "after the receipt", "sealed"])
def test_killed_in_the_second_attempt_it_is_carried_out_once(tmp_path, moment):
    failed(tmp_path)
    with Ledger(tmp_path / LEDGER) as ledger:
        ledger.retry("r1")

    def dying():
        def kill(*values, **options):
            os.kill(os.getpid(), signal.SIGKILL)

        match moment:
            case "before the commit":
                module.log_entry = kill
            case "before the receipt":
                module.ForgettingService.finalise = kill
            case "after the receipt":
                Ledger.finish = kill
            case "sealed":
                Ledger.scrub = kill
        go_on(tmp_path)

    assert in_child(dying) < 0
    assert record_id(1) not in go_on(tmp_path)
    assert [each["outcome"] for each in receipts(tmp_path)] == ["failed", "done"]


@pytest.mark.faults
def test_an_attempt_after_a_crash_is_not_taken_for_the_failure_before_it(tmp_path):
    """The newest checkpoint still holds the failure; what was asked again must not end with it."""

    def dying():
        fail = Ledger.fail

        def killed(self, *values):
            fail(self, *values)
            os.kill(os.getpid(), signal.SIGKILL)

        Ledger.fail = killed
        failed(tmp_path)

    assert in_child(dying) < 0
    found = Checkpoints(tmp_path / "checkpoints", fingerprint={}).latest()
    assert found.state["forgetting"]["applied"]["r1"]["outcome"] == "failed"
    with Ledger(tmp_path / LEDGER) as ledger:
        assert ledger.entry("r1").status == "failed"
        ledger.retry("r1")
    assert record_id(1) not in go_on(tmp_path)
    assert receipts(tmp_path)[-1]["outcome"] == "done"


def test_a_deadline_that_passes_is_an_event_once(tmp_path):
    """The clock of these runs stands at 2000."""
    schedule = [
        ForgetRequest(subject="subject-1", offset=16, id="late", deadline=1500.0),
        ForgetRequest(ids=[record_id(0)], offset=8, id="early", deadline=2500.0),
    ]
    with Opened(tmp_path, ScriptedSource([4] * 6), schedule=[schedule[1]]) as run:
        run.forgetting.submit(schedule[0])
        run.run()
    (event,) = events(tmp_path, "overdue")
    assert (event["request"], event["deadline"], event["offset"]) == ("late", 1500.0, 0)
    assert [each["late_by"] for each in (*receipts(tmp_path, "early"), *receipts(tmp_path, "late"))] == [
        0,
        500,
    ]


def test_a_failed_request_past_its_deadline_is_told_though_it_is_not_pending(tmp_path):
    failed(tmp_path, deadline=1500.0)
    go_on(tmp_path, broken=True)
    assert len(events(tmp_path, "overdue")) >= 1
    (finding,) = [each for each in check_run(tmp_path) if each.text.startswith("request 'r1' failed")]
    assert "retry RUN r1" in finding.hint


@pytest.mark.long
def test_the_command_line_and_python_ask_again(tmp_path, monkeypatch):
    from streamcl.learners.statistics import ClosedFormStatistics

    subtract = ClosedFormStatistics.subtract

    def fails(self, value):
        raise ForgettingError("not today")

    with open_run(configuration(tmp_path)) as run:
        list(run)
        monkeypatch.setattr(ClosedFormStatistics, "subtract", fails)
        name = run.forget(label="4", key="letter")
        run.processor.forget()
        assert run.forget(label="4", key="letter") == name  # the same key asks again
        run.processor.forget()
        run.retry_request("letter")
        run.processor.forget()
    assert [each["outcome"] for each in receipts(run.folder, name)] == ["failed"] * 3
    monkeypatch.setattr(ClosedFormStatistics, "subtract", subtract)
    assert call("retry", run.folder, "nobody")[0] == 6
    code, text = call("retry", run.folder, "letter", "--execute")
    assert (code, name in text, "done: exact" in text) == (0, True, True)
    for path in sorted((run.folder / "receipts").glob("*.json")):
        assert call("verify", path)[0] == 0
    assert call("retry", run.folder, name)[0] == 6  # it is done
