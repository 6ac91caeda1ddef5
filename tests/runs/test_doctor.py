"""The doctor finds what was broken, names the place, and changes nothing."""

import json
import os
import random
import shutil

import pytest

from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.receipts.archive import ReceiptArchive
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.runs.doctor import check_run
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.lock import RunLock
from streamcl.storage.manifest_mac import ManifestMac


@pytest.fixture
def run_dir(tmp_path):
    """A run that was interrupted, as it should be."""
    folder = tmp_path / "a run"
    checkpoints = Checkpoints(folder / "checkpoints", fingerprint={}, mac=ManifestMac())
    for step in (1, 2):
        checkpoints.save(step * 8, step, {"step": step})
    (folder / "config.yaml").write_text("learner: ridge_lora\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (folder / "samples").mkdir()
    with Ledger(folder / LEDGER) as ledger:
        ledger.submit({"id": "r1"})
        ledger.start("r1")
        ledger.finish("r1")
        ledger.scrub("r1")
    write_receipt(folder, "r1", "done")
    return folder


def write_receipt(folder, request, outcome):
    fields = {"kind": "class", "on_return": "drop", "offset": 8, "received": 1.0, "completed": 2.0}
    ReceiptArchive(folder).write(Receipt(request=request, outcome=outcome, **fields))


def worse_than_ok(folder):
    return [(found.level, found.place) for found in check_run(folder) if found.level != "ok"]


SUMMARY = ("warning", "summary.json")


def test_a_sound_run_has_nothing_but_its_end_missing(run_dir):
    assert worse_than_ok(run_dir) == [SUMMARY]
    texts = " ".join(found.text for found in check_run(run_dir))
    assert "good, at offset 16, step 2" in texts
    assert "1 forgetting requests, 0 pending" in texts
    assert "2 lines" in texts
    (run_dir / "summary.json").write_text("{}")
    assert worse_than_ok(run_dir) == []


def test_it_changes_nothing(run_dir):
    def content():
        return {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}

    (run_dir / "checkpoints" / ".tmp-x").mkdir()
    before = content()
    check_run(run_dir)
    assert content() == before
    assert (run_dir / "checkpoints" / ".tmp-x").is_dir()


def write(name, content):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def pipe(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def ledger_left(*verbs):
    def change(folder):
        with Ledger(folder / LEDGER) as ledger:
            ledger.submit({"id": "r2"})
            for verb in verbs:
                getattr(ledger, verb)("r2", *(["gone"] if verb == "fail" else []))
        if outcome := {"fail": "failed", "finish": "done"}.get(verbs[-1]):
            write_receipt(folder, "r2", outcome)

    return change


NEWEST = "checkpoints/checkpoint-00000002-step-2"
CASES = {
    "no config": (lambda folder: (folder / "config.yaml").unlink(), ("error", "config.yaml")),
    "config not YAML": (write("config.yaml", b"a: [\n"), ("error", "config.yaml")),
    "config not UTF-8": (write("config.yaml", b"a: \xff\n"), ("error", "config.yaml")),
    "config a list": (write("config.yaml", b"- a\n"), ("error", "config.yaml")),
    "config python": (write("config.yaml", b"!!python/object/apply:os.abort []"), ("error", "config.yaml")),
    "config nested": (write("config.yaml", b"[" * 5000), ("error", "config.yaml")),
    "config huge": (lambda folder: os.truncate(folder / "config.yaml", 1 << 40), ("error", "config.yaml")),
    "config a pipe": (pipe("config.yaml"), ("error", "config.yaml")),
    "checkpoint cut": (write(f"{NEWEST}/state.json", b""), ("error", NEWEST)),
    "temporary": (write("checkpoints/.tmp-checkpoint/a", b""), ("warning", "checkpoints/.tmp-checkpoint")),
    "temporary file": (write(".tmp-summary.json-1-a", b""), ("warning", ".tmp-summary.json-1-a")),
    "torn at the end": (write("metrics.jsonl", b'{"step": 1}\n{"st'), ("warning", "metrics.jsonl")),
    "torn in the middle": (write("events.jsonl", b'{"a":\n{"b": 1}\n'), ("error", "events.jsonl")),
    "log a pipe": (pipe("events.jsonl"), ("error", "events.jsonl")),
    "summary torn": (write("summary.json", b'{"a'), ("error", "summary.json")),
    "summary a pipe": (pipe("summary.json"), ("error", "summary.json")),
    "ledger damaged": (write(LEDGER, b"x" * 5000), ("error", LEDGER)),
    "ledger a pipe": (pipe(LEDGER), ("error", LEDGER)),
    "request pending": (ledger_left("start"), ("warning", LEDGER)),
    "request failed": (ledger_left("start", "fail"), ("error", LEDGER)),
    "request not scrubbed": (ledger_left("start", "finish"), ("warning", LEDGER)),
    "receipt missing": (lambda folder: (folder / "receipts/r1.json").unlink(), ("error", "receipts")),
}


@pytest.mark.faults
@pytest.mark.parametrize(("change", "expected"), CASES.values(), ids=CASES.keys())
def test_what_is_wrong_is_found_and_nothing_else(run_dir, change, expected):
    change(run_dir)
    assert sorted({*worse_than_ok(run_dir), SUMMARY}) == sorted({expected, SUMMARY})


def test_none_usable_and_none_at_all_are_told_apart(run_dir):
    for path in (run_dir / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    assert ("error", "checkpoints") in worse_than_ok(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    assert ("warning", "checkpoints") in worse_than_ok(run_dir)


def test_a_running_process_is_named(run_dir):
    with RunLock(run_dir):
        assert f"in use by process {os.getpid()} on" in check_run(run_dir)[0].text


def test_a_missing_folder_is_one_finding(tmp_path):
    assert worse_than_ok(tmp_path / "missing") == [("error", ".")]


@pytest.mark.faults
def test_no_damage_makes_it_stumble(run_dir, tmp_path):
    dice = random.Random(0)
    (run_dir / "summary.json").write_text(json.dumps({"run": "x"}))
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(run_dir, folder)
        victims = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        path = dice.choice(victims)
        content = bytearray(path.read_bytes())
        at = dice.randrange(len(content))
        content[at : at + dice.randrange(9)] = dice.randbytes(dice.randrange(9))
        path.write_bytes(content)
        assert len(check_run(folder)) >= 6
