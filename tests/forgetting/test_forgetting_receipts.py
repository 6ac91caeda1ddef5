"""Receipts: canonical, chained, without names; a changed byte is refused."""

import hashlib
import json
import re
from contextlib import suppress

import pytest
import rfc8785
from forgetting_fakes import Opened

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.receipts.archive import ReceiptArchive, read_receipts, receipt_path
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.storage import hash_chain
from streamcl.testing import FaultyDisk, ScriptedSource, record_id

PLACES = {
    *("stored statistics", "head statistics", "adapters", "optimizer moments", "importance", "hard buffer"),
    *("shift detector", "prototypes", "calibration"),
    *(
        "metrics",
        "prediction log, quarantine and events",
        "thumbnails",
        "report and summary",
        "exports",
        "caches",
    ),
    *("checkpoints", "ledger", "lineage", "metrics services", "source data"),
}

SMALL = Receipt(
    **{"request": "r1", "kind": "class", "outcome": "refused", "offset": 0, "on_return": "drop"},
    **{"received": 1.0, "completed": 2.0, "deadline": None, "reason": "<no>"},
)


@pytest.fixture
def run(tmp_path):
    schedule = [
        ForgetRequest(subject="subject-1", offset=8, id="r1", deadline=5000.0, key="letter 17"),
        ForgetRequest(ids=[record_id(2)], offset=12, id="r2"),
    ]
    with Opened(tmp_path, ScriptedSource([4] * 6, classes=("zebra", "ibex")), schedule=schedule) as opened:
        opened.run()
    return tmp_path


def read(path):
    return json.loads(path.read_text())


def test_a_receipt_covers_every_place_by_name(run):
    receipt = read(run / "receipts" / "r1.json")
    assert {place["name"] for place in receipt["locations"]} == PLACES
    assert all(place["explanation"] for place in receipt["locations"])
    assert receipt["residual"].endswith(".")
    assert receipt["learner_before"] != receipt["learner_after"]
    assert (receipt["received"], receipt["completed"], receipt["deadline"]) == (1000.0, 2000.0, 5000.0)


def test_a_receipt_names_nobody(run):
    text = (run / "receipts" / "r1.json").read_text()
    for name in ("subject-1", "zebra", "ibex", "letter 17", record_id(1), record_id(4)):
        assert name not in text
    salted = set(read(run / "receipts" / "r1.json")["scope"]["ids"])
    assert len(salted) == 3
    assert not salted & {hashlib.sha256(record_id(k).encode()).hexdigest()[:32] for k in range(24)}


def test_receipts_verify_and_form_a_chain(run):
    chain = read_receipts(run)
    assert [receipt.number for _, receipt in chain] == [1, 2]
    assert chain[1][1].previous == hashlib.sha256(chain[0][0].read_bytes()).hexdigest()
    for path, _ in chain:
        assert any("one of the" in line for line in verify_receipt(path))


def test_any_changed_byte_is_refused(run):
    path = run / "receipts" / "r1.json"
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ForgettingError):
            verify_receipt(path)
    path.write_bytes(data)
    verify_receipt(path)


def test_a_forged_receipt_breaks_the_chain(run):
    """Its own hash can be computed anew; the receipt after it still holds the old one."""
    path = run / "receipts" / "r1.json"
    body = {k: v for k, v in read(path).items() if k != "sha256"} | {"guarantee": "approximate"}
    path.write_bytes(rfc8785.dumps({**body, "sha256": hashlib.sha256(rfc8785.dumps(body)).hexdigest()}))
    with pytest.raises(ForgettingError, match="not chained"):
        verify_receipt(run / "receipts" / "r2.json")


def test_a_missing_receipt_is_noticed(run):
    (run / "receipts" / "r1.json").unlink()
    with pytest.raises(ForgettingError, match="number 1 is missing"):
        verify_receipt(run / "receipts" / "r2.json")


def test_an_erased_id_in_a_log_is_noticed(run):
    with (run / "predictions.jsonl").open("a") as log:
        log.write('{"step": 9, "id": "000001", "offset": 99}\n')
    with pytest.raises(ForgettingError, match="the logs still hold an erased sample"):
        verify_receipt(run / "receipts" / "r1.json")


def test_a_receipt_that_was_taken_elsewhere_is_checked_by_its_bytes(run, tmp_path_factory):
    copy = tmp_path_factory.mktemp("elsewhere") / "r1.json"
    copy.write_bytes((run / "receipts" / "r1.json").read_bytes())
    assert any("outside its run" in line for line in verify_receipt(copy))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".hidden", "x" * 150, "é"])
def test_an_id_never_leads_out_of_the_folder(tmp_path, name):
    path = receipt_path(tmp_path, name)
    assert path.parent == tmp_path / "receipts"
    assert re.fullmatch(r"[0-9a-f]{64}\.json", path.name)


def test_a_second_receipt_for_a_request_is_not_written(tmp_path):
    path = ReceiptArchive(tmp_path).write(SMALL)
    before = path.read_bytes()
    assert ReceiptArchive(tmp_path).write(SMALL.model_copy(update={"offset": 9})) == path
    assert path.read_bytes() == before


def test_a_page_says_what_the_receipt_says_and_no_more(run, tmp_path):
    text = (run / "receipts" / "r1.html").read_text()
    for words in ("Everything of a person", "head statistics", "streamcl verify receipts/r1.json", "exact"):
        assert words in text
    assert "subject-1" not in text
    assert "<script" not in text
    assert "http" not in text


def test_a_page_says_beside_the_verdict_what_it_does_not_cover(run):
    text = (run / "receipts" / "r1.html").read_text()
    rest = text[text.index("What this does not cover") : text.index('class="list facts"')]
    locations = read(run / "receipts" / "r1.json")["locations"]
    left = {each["name"] for each in locations if each["status"] in ("remains", "not reachable")}
    assert "source data" in left
    assert set(re.findall(r"<em>([^<]+)</em>", rest)) == left


def test_a_page_names_the_run_and_who_asked_and_why(run, tmp_path):
    text = (run / "receipts" / "r1.html").read_text()
    assert run.name in text
    assert "Requested by" not in text
    asked = SMALL.model_copy(update={"requested_by": "ticket 17", "grounds": "consent withdrawn"})
    text = ReceiptArchive(tmp_path / "other").write(asked).with_suffix(".html").read_text()
    assert "ticket 17" in text
    assert "consent withdrawn" in text


def test_a_page_escapes_what_it_shows(tmp_path):
    path = ReceiptArchive(tmp_path).write(SMALL)
    assert "&lt;no&gt;" in path.with_suffix(".html").read_text()


def test_a_receipt_is_written_without_reading_the_earlier_ones_again(tmp_path, monkeypatch):
    archive, read_paths = ReceiptArchive(tmp_path), []
    read = hash_chain.read_link
    monkeypatch.setattr(
        hash_chain, "read_link", lambda path, noun: read_paths.append(path.name) or read(path, noun)
    )
    for number in range(5):
        archive.write(SMALL.model_copy(update={"request": f"r{number}"}))
    assert not read_paths
    ReceiptArchive(tmp_path).write(SMALL.model_copy(update={"request": "r5"}))
    assert sorted(read_paths) == [f"r{number}.json" for number in range(5)]
    assert [receipt.number for _, receipt in read_receipts(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_after_a_write_that_failed_the_chain_goes_on_from_what_is_there(tmp_path):
    for number in range(1, 20):
        disk = FaultyDisk(number, "eio")
        archive, folder = ReceiptArchive(tmp_path / str(number), disk=disk), tmp_path / str(number)
        for request in ("r1", "r2", "r3"):
            with suppress(OSError):
                archive.write(SMALL.model_copy(update={"request": request}))
        archive.write(SMALL.model_copy(update={"request": "r4"}))
        chain = read_receipts(folder)
        assert [receipt.number for _, receipt in chain] == list(range(1, len(chain) + 1))
        assert chain[-1][1].request == "r4"


def test_a_new_process_reads_one_receipt_only_where_nothing_has_changed(tmp_path, monkeypatch):
    archive, read_paths = ReceiptArchive(tmp_path), []
    for number in range(4):
        archive.write(SMALL.model_copy(update={"request": f"r{number}"}))
    newest, read = archive.newest, hash_chain.read_link
    monkeypatch.setattr(
        hash_chain, "read_link", lambda path, noun: read_paths.append(path.name) or read(path, noun)
    )
    again = ReceiptArchive(tmp_path, newest=newest)
    again.write(SMALL.model_copy(update={"request": "r4"}))
    assert read_paths == ["r3.json"]
    ReceiptArchive(tmp_path, newest=newest).write(SMALL.model_copy(update={"request": "r5"}))  # it is old
    assert [receipt.number for _, receipt in read_receipts(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_with_its_chain_where_it_stopped(tmp_path, monkeypatch):
    for count in (1, 2, 3):
        schedule = [ForgetRequest(ids=[record_id(k)], offset=4, id=f"r{k}") for k in range(count)]
        with Opened(tmp_path, ScriptedSource([4] * (count + 1)), schedule=schedule) as opened:
            opened.run()
            assert opened.ledger.recall("newest receipt")[1] == count
    assert [receipt.request for _, receipt in read_receipts(tmp_path)] == ["r0", "r1", "r2"]
