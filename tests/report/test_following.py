"""A run is followed while it goes on: each record is read once, and nothing that was erased stays."""

import json
import os

import pytest

from streamcl.evaluation.prequential import Prequential
from streamcl.events import PredictionRecord
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.ledger.ledger_reader import newest_requests
from streamcl.report import following
from streamcl.report.following import RunFollower
from streamcl.report.live import RunState, live_page
from streamcl.report.overview import complete_summary
from streamcl.report.reading import LIMIT_EVENTS, read_run
from streamcl.storage.checkpoint import Checkpoints

CLASSES = ("heron", "otter", "lynx")


def prediction(offset, label=None, predicted=None):
    label = label or CLASSES[offset % 3]
    fields = {"id": f"scan-{offset}", "label": label, "predicted": predicted or label, "confidence": 0.5}
    return {"step": offset, "offset": offset, **fields}


def step(number):
    figures = {"loss": 1 / number, "window_accuracy": 0.5, "accuracy": 0.5, "images_per_s": 9.0}
    return {"kind": "step", "step": number, "offset": number, **figures}


def add(folder, topic, *records):
    with (folder / f"{topic}.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)


def read_all(follower):
    while follower.advance():
        pass
    return follower


def write(folder, count=30):
    add(folder, "events", {"kind": "start", "offset": 0, "shifts": [10], "length": 40})
    add(folder, "metrics", *(step(number) for number in range(1, count + 1)))
    add(folder, "predictions", *(prediction(offset) for offset in range(count)))


def test_what_is_followed_equals_what_is_read_at_once(tmp_path):
    follower = RunFollower(tmp_path)
    for part in range(5):
        write(tmp_path / ".") if part == 0 else add(tmp_path, "predictions", prediction(29 + part))
        add(tmp_path, "events", {"kind": "shift", "offset": 11 * part, "reason": "r"})
        read_all(follower)
    assert complete_summary(follower.log) == complete_summary(read_run(tmp_path))
    assert not follower.advance()


def test_a_record_counts_once_it_is_complete(tmp_path):
    follower = RunFollower(tmp_path)
    line = json.dumps(prediction(0)) + "\n"
    for place, letter in enumerate(line):
        with (tmp_path / "predictions.jsonl").open("a") as file:
            file.write(letter)
        follower.advance()
        assert follower.log.predictions.samples == (place == len(line) - 1)


def test_nothing_is_read_twice(tmp_path, monkeypatch):
    write(tmp_path)
    follower = read_all(RunFollower(tmp_path))
    parsed = []
    monkeypatch.setattr(following, "json_object", lambda line: parsed.append(line) or json.loads(line))
    for offset in range(30, 50):
        add(tmp_path, "predictions", prediction(offset))
        follower.advance()
    assert len(parsed) == 20
    assert follower.log.predictions.samples == 50


def test_a_large_file_is_read_in_portions_and_a_line_without_end_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "PORTION_BYTES", 1000)
    monkeypatch.setattr(following, "MAX_LINE_BYTES", 500)
    write(tmp_path)
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('"' + "x" * 1900 + '"\n')
    add(tmp_path, "predictions", prediction(30))
    follower, behind = RunFollower(tmp_path), []
    while follower.advance():
        behind.append(follower.behind)
    assert behind == sorted(behind, reverse=True)
    assert behind[0] > behind[-1] == 0
    assert follower.log.predictions.samples == 31


def test_after_an_erasure_nothing_of_it_is_left(tmp_path):
    write(tmp_path)
    add(tmp_path, "events", {"kind": "new_class", "offset": 3, "classes": list(CLASSES)})
    follower = read_all(RunFollower(tmp_path))
    assert "otter" in page_of(follower)
    for topic in ("predictions", "events"):  # as an erasure does it: a new file of the same length
        path = tmp_path / f"{topic}.jsonl"
        (tmp_path / "new").write_text(path.read_text().replace("otter", "     "))
        (tmp_path / "new").replace(path)
    follower.advance()
    assert "otter" not in page_of(read_all(follower))
    assert follower.log.predictions.samples == 30


def test_a_receipt_makes_it_read_everything_anew(tmp_path):
    write(tmp_path)
    follower = read_all(RunFollower(tmp_path))
    path = tmp_path / "predictions.jsonl"
    text, times = path.read_text().replace("otter", "     "), path.stat()
    path.write_text(text)  # in place, and of the same length: only the receipt tells
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "receipts").mkdir()
    assert "otter" not in page_of(read_all(follower))


@pytest.mark.parametrize("left", [0, 10, 20])
def test_a_file_that_a_crash_cut_back_is_read_anew(tmp_path, left):
    write(tmp_path)
    follower = read_all(RunFollower(tmp_path))
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join(lines[:left]) + "".join(each.replace("otter", "polecat") for each in lines[left:])
    )
    read_all(follower)
    assert complete_summary(follower.log) == complete_summary(read_run(tmp_path))
    path.unlink()
    assert read_all(follower).log.predictions.samples == 0


def test_memory_is_bounded_and_the_newest_is_what_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "MAX_EVALUATIONS", 10)
    add(tmp_path, "metrics", *(step(number) for number in range(1, 5000)))
    add(tmp_path, "metrics", *({"kind": "holdout", "offset": n, "accuracy": 0.1} for n in range(100)))
    add(tmp_path, "events", *({"kind": "shift", "offset": n} for n in range(2 * LIMIT_EVENTS)))
    log = read_all(RunFollower(tmp_path)).log
    assert len(log.steps.loss.points) <= 800
    assert sorted(log.holdout) == list(range(90, 100))
    assert len(log.events["shift"]) <= LIMIT_EVENTS
    assert log.offsets("shift")[-1] == 2 * LIMIT_EVENTS - 1


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path):
    write(tmp_path)
    add(tmp_path, "events", {"kind": "end", "offset": 30})
    (tmp_path / "summary.json").write_text(json.dumps({"run": "x", "prequential": {"accuracy": 0.25}}))
    follower = read_all(RunFollower(tmp_path))
    assert (follower.log.finished, follower.log.summary["run"]) == (True, "x")
    add(tmp_path, "metrics", step(31))
    read_all(follower)
    assert (follower.log.finished, follower.log.summary) == (False, {})


def test_domains_and_checkpoints_are_those_of_the_newest_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", fingerprint={}, keep=1)
    follower, scores = RunFollower(tmp_path), Prequential()
    for offset, domain in enumerate(["sketch", "photo", "photo"]):
        scores.update([PredictionRecord("a", offset, "x", "x" if offset else "y", 0.5)], [domain])
        checkpoints.save(offset, offset, {"scores": scores.state_dict()})
        read_all(follower)
        assert [row.offset for row in follower.checkpoints.rows] == [offset]
    stream = complete_summary(follower.log)["prequential"]
    assert stream["per_domain"] == {"sketch": 0.0, "photo": 1.0}
    assert stream["domain_support"] == {"sketch": 1, "photo": 2}
    assert "checkpoint-00000003-step-2" in page_of(follower)


def test_requests_are_read_without_secret_and_nothing_is_written(tmp_path, monkeypatch):
    with Ledger(tmp_path / LEDGER) as ledger:
        ledger.submit({"id": "ticket-17", "label": "otter"})
        assert [each.id for each in newest_requests(tmp_path / LEDGER, 5)] == ["ticket-17"]  # it is in use
        ledger.refuse("ticket-17", "no <b>such</b> class")
    monkeypatch.setenv("STREAMCL_KEYS", str(tmp_path / "none"))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    page = page_of(RunFollower(tmp_path))
    assert "ticket-17" in page
    assert "refused" in page
    assert "&lt;b&gt;such" in page
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / LEDGER).write_bytes(b"damaged")
    assert newest_requests(tmp_path / LEDGER, 5) == []


def page_of(follower):
    return json.dumps(live_page(follower, RunState("running", 1e9)).parts)


@pytest.mark.parametrize(
    ("learning", "later", "said"),
    [
        ("running", 1.0, "learning: running, last record at"),
        ("running", 20.0, "waiting: 30 records so far, last at"),
        ("stopped", 20.0, "learning: stopped, last record at"),
        ("finished", 20.0, "learning: finished, last record at"),
    ],
)
def test_a_run_without_new_records_waits(tmp_path, learning, later, said):
    write(tmp_path)
    follower = read_all(RunFollower(tmp_path))
    health = live_page(follower, RunState(learning, follower.written + later)).parts["health"]
    assert said in health


def test_an_empty_folder_makes_a_page(tmp_path):
    page = live_page(RunFollower(tmp_path), RunState("running", 1e9))
    assert "waiting: nothing has come yet" in page.parts["health"]
    assert not page.curves


def test_no_part_has_a_style_or_a_name_as_html(tmp_path):
    write(tmp_path)
    add(tmp_path, "predictions", prediction(30, "<script>x</script>"))
    add(tmp_path, "events", {"kind": "new_class", "offset": 30, "classes": ["<script>x</script>"]})
    page = live_page(read_all(RunFollower(tmp_path)), RunState("running", 1e9, lag=7))
    text = "".join(page.parts.values())
    assert "style=" not in text
    assert "<script" not in text
    assert "&lt;script" in text
    assert "records wait at the source" in text
