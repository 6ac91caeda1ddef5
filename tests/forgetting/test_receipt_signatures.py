"""Receipts that a stranger can verify: rewritten, removed, reordered and replayed ones are refused."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785
from forgetting_fakes import ForgettingLearner, Opened
from live_readers import Clock
from signed_runs import KEY, KEYS, TAMPERINGS, make_run, receipts, signed_run_fixtures

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.receipts import verify
from streamcl.forgetting.receipts.archive import no_signing_key
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.runs.doctor import check_run
from streamcl.storage import envelope, hash_chain, signed_link
from streamcl.storage.hash_chain import HEAD
from streamcl.storage.key_folder import KeyFolder
from streamcl.storage.plain_state import state_hash
from streamcl.storage.signing import PublicKeys
from streamcl.testing import ScriptedSource, record_id

REWRITTEN = {
    **{"received": 1.0, "completed": 2.0, "late_by": 0.0, "deadline": None, "method": "no_op"},
    **{"guarantee": "bounded", "residual": "none.", "utility": {"samples": 9, "before": 0.5, "after": 1.0}},
    **{"scope": {"learned": 0, "passed": 0, "ids": [], "label": None, "cohorts": []}, "figures": {}},
}


signed, run = signed_run_fixtures()


def write_rewritten(path, changes, previous=None):
    """Write a receipt with other content as an attacker would, its own hash computed anew."""
    body = json.loads(path.read_text()) | changes
    del body["sha256"]
    if previous is not None:
        body["previous"] = hashlib.sha256(previous.read_bytes()).hexdigest()
    path.write_bytes(rfc8785.dumps({**body, "sha256": hashlib.sha256(rfc8785.dumps(body)).hexdigest()}))


def chain_again(run):
    """Compute every later hash of the chain anew."""
    for earlier, later in zip(receipts(run), receipts(run)[1:], strict=False):
        write_rewritten(later, {}, earlier)


def faults(run, keys=KEYS):
    findings = check_run(run, keys)
    return [each.text for each in findings if each.level == "error" and each.place == "receipts"]


def test_a_signed_run_verifies_and_says_by_whom_and_what_not(run):
    for path in (*receipts(run), *(path.with_suffix(".dsse") for path in receipts(run))):
        lines = verify_receipt(path, KEYS)
        assert lines[0].startswith(
            f"signed with the key {KEY.public.key_id}, whose holder calls itself 'ACME'"
        )
        assert "was carried out on 1970-01-01 00:33:20 UTC" in lines[1]
        assert "cannot prove that no copy exists" in lines[-1]
    assert "500 s late" in verify_receipt(receipts(run)[0], KEYS)[1]
    assert faults(run) == []
    assert "3 receipts in an unbroken chain, 3 signed" in [finding.text for finding in check_run(run, KEYS)]


@pytest.mark.parametrize("field", REWRITTEN)
@pytest.mark.parametrize("stripped", [False, True], ids=["envelopes kept", "envelopes removed"])
def test_a_rewritten_receipt_is_refused_though_the_chain_is_computed_anew(run, tmp_path, field, stripped):
    first = receipts(run)[0]
    unsigned = {"signed_by": None} if stripped else {}
    if stripped:
        for path in (run / "receipts").glob("*.dsse"):
            path.unlink()
        for path in receipts(run):
            write_rewritten(path, unsigned)
    write_rewritten(first, {field: REWRITTEN[field], **unsigned})
    chain_again(run)
    with pytest.raises(ForgettingError, match=r"not signed|another document"):
        verify_receipt(first, KEYS)
    assert any("not signed" in text or "another document" in text for text in faults(run))
    copy = tmp_path / "r1.json"
    shutil.copy(first, copy)
    with pytest.raises(ForgettingError, match=r"not signed|envelope is missing"):
        verify_receipt(copy, KEYS)


def test_the_newest_receipt_cannot_be_removed(run):
    for path in (receipts(run)[2], receipts(run)[2].with_suffix(".dsse")):
        path.unlink()
    with pytest.raises(ForgettingError, match="'r3' is done, and the receipt of that is missing"):
        verify_receipt(receipts(run)[0], KEYS)
    assert any("'r3' is done, and the receipt of that is missing" in text for text in faults(run))


def test_nor_with_its_request_in_the_ledger(run):
    for path in (receipts(run)[2], receipts(run)[2].with_suffix(".dsse")):
        path.unlink()
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM requests WHERE id = 'r3'")
    with pytest.raises(ForgettingError, match="not the signed head"):
        verify_receipt(receipts(run)[0], KEYS)
    (run / "receipts" / HEAD).unlink()
    with pytest.raises(ForgettingError, match="head of the chain of receipts is missing"):
        verify_receipt(receipts(run)[0], KEYS)


def test_the_newest_receipt_of_a_run_without_a_key_cannot_be_removed_either(tmp_path):
    run = make_run(tmp_path / "run", signing_key=no_signing_key)
    lines = verify_receipt(receipts(run)[0])
    assert lines[0] == "it is not signed: it proves nothing to anyone who does not trust the run directory"
    assert json.loads(receipts(run)[0].read_text())["signed_by"] is None
    assert "proves nothing to others" in receipts(run)[0].with_suffix(".html").read_text()
    receipts(run)[2].unlink()
    with pytest.raises(ForgettingError, match="receipt of that is missing"):
        verify_receipt(receipts(run)[0])
    assert any("receipt of that is missing" in text for text in faults(run, PublicKeys()))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".json", ".dsse"])
def test_no_byte_of_a_receipt_can_be_changed(run, suffix, stride):
    path = receipts(run)[1].with_suffix(suffix)
    data = path.read_bytes()
    for place in range(0, len(data), stride):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(ForgettingError):
            verify_receipt(path, KEYS)
    path.write_bytes(data)
    verify_receipt(path, KEYS)


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_a_chain_that_was_tampered_with_is_refused(run, tamper):
    tamper(run)
    with pytest.raises(ForgettingError):
        verify_receipt(receipts(run)[0], KEYS)
    assert faults(run)


def blobs(run):
    """Everything in the SQLite files of a run that could be the key of a hash."""
    for path in run.glob("*.sqlite"):
        with sqlite3.connect(path) as file:
            for (table,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in file.execute(f"SELECT * FROM {table}"):
                    yield from (value for value in row if isinstance(value, bytes) and len(value) <= 64)


def test_ids_are_not_recovered_by_trying_candidates_with_what_the_run_holds(run):
    """Whoever has the whole run directory and knows every id of the stream finds none of the erased."""
    hashes = {name for path in receipts(run) for name in json.loads(path.read_text())["scope"]["ids"]}
    assert len(hashes) == 5
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        hashes |= {bytes(row[0]).hex() for row in ledger.execute("SELECT digest FROM tombstones")}
    candidates = [f"sample:{record_id(number)}".encode() for number in range(24)] + [b"subject:subject-1"]
    for key in {b"", *blobs(run)}:
        tried = {hashlib.blake2b(each, key=key, digest_size=16).hexdigest() for each in candidates}
        assert not tried & hashes


def test_a_guess_at_erased_samples_is_not_confirmed_by_the_state_before(tmp_path):
    """The state after is in the checkpoint: a guess could be added to it and compared with a plain hash."""
    before = []

    class Recording(ForgettingLearner):
        def subtract(self, value):
            before.append(self.state_dict())
            return super().subtract(value)

    schedule = [ForgetRequest(ids=[record_id(2)], offset=12, id="r1")]
    with Opened(tmp_path, ScriptedSource([4] * 6), learner=Recording(), schedule=schedule) as opened:
        opened.run()
        named = json.loads((tmp_path / "receipts" / "r1.json").read_text())["learner_before"]
        assert named == opened.ledger.fingerprint("learner", state_hash(before[0]))
    assert named != state_hash(before[0])


def test_a_receipt_under_the_name_of_another_is_refused(run):
    for suffix in (".json", ".dsse"):
        first, second = (path.with_suffix(suffix) for path in receipts(run)[:2])
        first_data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(first_data)
    with pytest.raises(ForgettingError, match=r"r2\.json is the receipt of request 'r1'"):
        verify_receipt(receipts(run)[0], KEYS)


def test_a_receipt_of_a_retired_key_stays_good_and_a_later_one_is_refused(tmp_path):
    times = iter([0.0, 3000.0, 3001.0])
    folder = KeyFolder(tmp_path / "keys", clock=lambda: next(times))
    old = folder.create()
    run = make_run(tmp_path / "run", folder.key_in_use)
    folder.rotate()
    assert any("signed with" in line for line in verify_receipt(receipts(run)[0], folder.public_keys()))
    late = KeyFolder(tmp_path / "late", clock=lambda: 2500.0)
    late.create()
    younger = PublicKeys.of([replace(old.public, valid_from=2500.0)])
    with pytest.raises(ForgettingError, match="outside the time in which its key was valid"):
        verify_receipt(receipts(run)[0], younger)
    with pytest.raises(ForgettingError, match="none of the 1 known public keys"):
        verify_receipt(receipts(run)[0], late.public_keys())
    assert old.public.key_id in folder.public_keys()


class ChangesKey:
    """Copies of records of which the second erasure makes a key, or replaces the one in use."""

    description = "none"

    def __init__(self, change):
        self.change, self.erasures = change, 0

    def count(self, erasures):
        return 0

    def erase(self, erasures):
        self.erasures += 1
        if self.erasures == 2:
            self.change()
        return 0

    def erase_returned(self, ids, labels):
        pass

    def scrub(self, request):
        pass


class RetainingSource(ScriptedSource):
    retained = None


@pytest.mark.parametrize("existed", [False, True])
def test_a_key_that_is_made_or_replaced_during_an_erasure_leaves_a_chain_that_verifies(tmp_path, existed):
    clock = Clock()
    folder = KeyFolder(tmp_path / "keys", clock=clock)
    if existed:
        folder.create()

    def change():
        clock.now += 0.5
        (folder.rotate if existed else folder.create)()

    source = RetainingSource([4] * 6, classes=("zebra", "ibex"))
    source.retained = ChangesKey(change)
    run = make_run(tmp_path / "run", folder.key_in_use, source, clock=clock)
    assert source.retained.erasures == 3
    signers = [json.loads(path.read_text())["signed_by"] for path in receipts(run)]
    assert signers[0] == signers[1] != signers[2]
    for path in receipts(run):
        assert verify_receipt(path, folder.public_keys())


def test_a_run_that_loses_its_key_is_refused(tmp_path):
    keys = iter([KEY, KEY, None])
    run = make_run(tmp_path / "run", lambda: nullcontext(next(keys)))
    with pytest.raises(ForgettingError, match=r"r3\.json is not signed"):
        verify_receipt(receipts(run)[0], KEYS)


def write_audits(run, verdicts, key=KEY):
    head = hash_chain.ChainHead(run / "audits", "audit")
    (run / "audits").mkdir(exist_ok=True)
    paths = [run / "audits" / f"{place}.json" for place, _ in enumerate(verdicts)]
    for path, verdict in zip(paths, verdicts, strict=True):
        receipt = hash_chain.sha256_of(receipts(run)[0])
        audit = {"verdict": verdict, "models": {"references": 8}}
        content = {"request": "r1", "receipt": receipt, "made": 2500.0, "audit": audit}
        head.write(head.next_link(content, key), path)
        if key is not None:
            head.sign(key)
    return paths


def test_audits_are_verified_by_their_signatures_too(run):
    first, second = write_audits(run, ["fail", "pass"])
    lines = verify_receipt(receipts(run)[0], KEYS)
    assert [line for line in lines if "an audit belongs to it" in line] == [
        "an audit belongs to it, number 1 of 2: fail, compared with 8 retrained models",
        "an audit belongs to it, number 2 of 2: pass, compared with 8 retrained models",
    ]
    whole = first.read_bytes()
    write_rewritten(first, {"audit": {"verdict": "pass", "models": {"references": 8}}})
    write_rewritten(second, {}, first)
    with pytest.raises(ForgettingError, match="another document"):
        verify_receipt(receipts(run)[0], KEYS)
    assert any("another document" in text for text in faults(run))
    first.write_bytes(whole)
    second.unlink()
    second.with_suffix(".dsse").unlink()
    with pytest.raises(ForgettingError, match="newest audit is not the signed head"):
        verify_receipt(receipts(run)[0], KEYS)


def test_the_records_of_a_run_are_read_once_for_all_of_its_receipts(run, monkeypatch):
    write_audits(run, ["fail", "pass"])
    read = []
    for module, name in (
        (hash_chain, "read_link"),
        (signed_link, "read_envelope"),
        (verify, "logged_ids"),
    ):
        original = getattr(module, name)

        def counted(path, *others, original=original, name=name):
            read.append((name, path.name))
            return original(path, *others)

        monkeypatch.setattr(module, name, counted)
    verifier = verify.ReceiptVerifier(KEYS)
    for path in receipts(run):
        assert verifier.verify(path)
    links = [path.name for folder in ("receipts", "audits") for path in (run / folder).glob("*.json")]
    own = [path.name for path in receipts(run)]  # each is verified by itself, too
    envelopes = [Path(name).with_suffix(".dsse").name for name in links + own]
    assert sorted(read) == sorted(
        [("read_link", name) for name in links + own]
        + [("read_envelope", name) for name in [*envelopes, HEAD, HEAD]]
        + [("logged_ids", run.name)]
    )


def test_an_audit_without_a_signature_is_refused_where_a_key_exists(run):
    write_audits(run, ["pass"], key=None)
    with pytest.raises(ForgettingError, match=r"0\.json is not signed"):
        verify_receipt(receipts(run)[0], KEYS)


def test_the_head_may_be_the_one_before_while_a_receipt_is_being_written(run):
    head = run / "receipts" / HEAD
    before = hash_chain.head_statement(2, hash_chain.sha256_of(receipts(run)[1]))
    head.write_bytes(envelope.sign(before, "application/vnd.streamcl.receipt-head+json", KEY).to_bytes())
    verify_receipt(receipts(run)[2], KEYS)
    long_before = hash_chain.head_statement(1, hash_chain.sha256_of(receipts(run)[0]))
    head.write_bytes(envelope.sign(long_before, "application/vnd.streamcl.receipt-head+json", KEY).to_bytes())
    with pytest.raises(ForgettingError, match="not the signed head"):
        verify_receipt(receipts(run)[2], KEYS)
