"""A verifier written from docs/receipts.md alone accepts and refuses what `streamcl verify` does."""

import json
import shutil
from pathlib import Path

import pytest
import second_verifier
from hypothesis import given
from hypothesis import strategies as st
from signed_runs import KEY, KEYS, TAMPERINGS, make_run, receipts, signed_run_fixtures

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.signature import verify_signature
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.storage import envelope, hash_chain
from streamcl.storage.signing import PublicKeys, SigningKey

pytestmark = pytest.mark.long

OTHER = SigningKey.generate()


signed, run = signed_run_fixtures()


def accepted_by_both(path, keys=KEYS):
    """Whether a receipt by itself is accepted; both verifiers must agree."""
    try:
        ours = verify_signature(path, keys).receipt.request
    except ForgettingError:
        ours = None
    try:
        known = second_verifier.read_keys(keys.to_bytes())
        theirs = second_verifier.verify_receipt(path.read_bytes(), known)["request"]
    except second_verifier.Refused:
        theirs = None
    assert ours == theirs
    return ours is not None


def chain_accepted_by_both(run):
    try:
        verify_receipt(receipts(run)[0], KEYS)
        ours = True
    except ForgettingError:
        ours = False
    try:
        envelopes = [path.read_bytes() for path in (run / "receipts").glob("r*.dsse")]
        head = (run / "receipts" / hash_chain.HEAD).read_bytes()
        second_verifier.verify_chain(envelopes, head, second_verifier.read_keys(KEYS.to_bytes()))
        theirs = True
    except second_verifier.Refused:
        theirs = False
    assert ours == theirs
    return ours


def test_the_second_verifier_is_short_and_shares_no_code():
    text = Path(second_verifier.__file__).read_text()
    assert len(text.splitlines()) <= 100
    assert "import streamcl" not in text
    assert "from streamcl" not in text


def test_both_accept_what_a_run_has_signed(run):
    assert all(accepted_by_both(path.with_suffix(".dsse")) for path in receipts(run))
    assert chain_accepted_by_both(run)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_both_refuse_every_changed_byte(run, stride):
    path = receipts(run)[1].with_suffix(".dsse")
    data = path.read_bytes()
    for place in range(0, len(data), stride):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        assert not accepted_by_both(path)


@given(data=st.data())
def test_both_refuse_pieces_that_are_cut_out_moved_or_repeated(signed, tmp_path_factory, data):
    good = receipts(signed)[1].with_suffix(".dsse").read_bytes()
    first, second, third = sorted(data.draw(st.integers(0, len(good))) for _ in range(3))
    changed = (
        good[:first] + good[second:third] + good[first:second] * data.draw(st.integers(0, 2)) + good[third:]
    )
    path = tmp_path_factory.getbasetemp() / "changed.dsse"
    path.write_bytes(changed)
    assert accepted_by_both(path) == (changed == good)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"completed": -1.0}, KEY),
        ({"signed_by": None}, KEY),
        ({"signed_by": OTHER.public.key_id}, KEY),
        ({"number": 0}, KEY),
        ({"number": True}, KEY),
        ({"previous": None}, KEY),
        ({"format": 2}, KEY),
        ({"completed": None}, KEY),
        ({}, OTHER),
    ],
)
def test_both_refuse_what_breaks_a_rule_though_it_is_signed(run, changes, key):
    path = receipts(run)[1]
    body = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    hash_chain.NewLink("receipt", body | changes, key).write(path)
    assert not accepted_by_both(path.with_suffix(".dsse"))


def test_both_refuse_another_type_and_the_bytes_of_another_document(run):
    path = receipts(run)[1].with_suffix(".dsse")
    document = receipts(run)[1].read_bytes()
    path.write_bytes(envelope.sign(document, "application/vnd.streamcl.audit+json", KEY).to_bytes())
    assert not accepted_by_both(path)
    for data in (
        document + b"\n",
        document.replace(b",", b", "),
        document.replace(b"{", b'{"format":1,', 1),
        b"[]",
    ):
        path.write_bytes(envelope.sign(data, "application/vnd.streamcl.receipt+json", KEY).to_bytes())
        assert not accepted_by_both(path)


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_both_refuse_a_chain_that_was_tampered_with(run, tamper):
    tamper(run)
    assert not chain_accepted_by_both(run)


def test_both_refuse_a_chain_without_its_end_and_the_head_of_another(run):
    other = make_run(run.parent / "other")
    shutil.copy(other / "receipts" / hash_chain.HEAD, run / "receipts")
    assert not chain_accepted_by_both(run)


def test_both_accept_a_retired_key_until_its_end(run):
    path = receipts(run)[0].with_suffix(".dsse")
    for end, good in ((2000.0, True), (1999.0, False)):
        jwk = {**KEY.public.to_json(), "exp": end}
        keys_file = run.parent / "keys.json"
        keys_file.write_text(json.dumps({"keys": [jwk]}))
        assert accepted_by_both(path, PublicKeys.read(keys_file)) == good
