"""Signing keys and public keys as files, the key folder, DSSE envelopes; the vectors of their standards."""

import base64
import hashlib
import json
import struct
import threading
from dataclasses import replace

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from streamcl.errors import ConfigError, ForgettingError
from streamcl.storage import envelope, hash_chain
from streamcl.storage.key_folder import KeyFolder
from streamcl.storage.private_files import key_directory
from streamcl.storage.signing import PublicKey, PublicKeys, SigningKey

KIND = "application/vnd.streamcl.receipt+json"
ALICE, BOB = SigningKey.generate(name="Alice", valid_from=10.0), SigningKey.generate()
SIGNED = envelope.sign(b'{"a":1}', KIND, ALICE)


def known(*keys):
    return PublicKeys.of(key.public for key in keys)


def test_the_key_id_is_the_thumbprint_of_rfc_8037():
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    key = PublicKey(base64.urlsafe_b64decode(x + "="))
    assert key.key_id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_signed_bytes_are_those_of_the_dsse_specification():
    assert (
        envelope.pre_authentication("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_links_are_in_the_canonical_form_of_rfc_8785():
    """The object of its section 3.2.2, and numbers of its appendix B by their bits."""
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\x0f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert rfc8785.dumps(value) == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode()
    )
    for bits, text in {
        "8000000000000000": b"0",
        "0000000000000001": b"5e-324",
        "7fefffffffffffff": b"1.7976931348623157e+308",
        "44b52d02c7e14af6": b"1e+23",
        "444b1ae4d6e2ef4f": b"999999999999999900000",
        "444b1ae4d6e2ef50": b"1e+21",
        "3eb0c6f7a0b5ed8d": b"0.000001",
        "3eb0c6f7a0b5ed8c": b"9.999999999999997e-7",
        "41b3de4355555553": b"333333333.3333332",
    }.items():
        (number,) = struct.unpack(">d", bytes.fromhex(bits))
        assert rfc8785.dumps(number) == text


def test_an_envelope_is_verified_with_the_key_that_signed_it(tmp_path):
    path = tmp_path / "r.dsse"
    path.write_bytes(SIGNED.to_bytes())
    read = envelope.read_envelope(path)
    assert read == SIGNED
    assert read.verify(known(BOB, ALICE), KIND).name == "Alice"
    with pytest.raises(ForgettingError, match="none of the 1 known public keys"):
        read.verify(known(BOB), KIND)
    with pytest.raises(ForgettingError, match="signed as"):
        read.verify(known(ALICE), "application/vnd.streamcl.audit+json")
    with pytest.raises(ForgettingError, match="not one of the key"):
        replace(read, payload=b'{"a":2}').verify(known(ALICE), KIND)
    with pytest.raises(ForgettingError, match="not one of the key"):
        replace(read, key_id=BOB.public.key_id).verify(known(ALICE, BOB), KIND)


def test_no_byte_of_an_envelope_can_be_changed_added_or_removed(tmp_path):
    path, data = tmp_path / "r.dsse", SIGNED.to_bytes()
    for place in range(len(data)):
        for changed in (
            data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
            data[:place] + data[place + 1 :],
            data[:place] + b" " + data[place:],
        ):
            path.write_bytes(changed)
            with pytest.raises(ForgettingError):
                envelope.read_envelope(path).verify(known(ALICE), KIND)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_envelope(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.dsse"
    path.write_bytes(data)
    with pytest.raises(ForgettingError):
        envelope.read_envelope(path)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b'{"keys": 3}',
        b'{"keys": [{}]}',
        b'{"keys": [{"kty": "OKP", "crv": "X25519"}]}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_file_without_public_keys_is_refused(tmp_path, data):
    (tmp_path / "keys.json").write_bytes(data)
    with pytest.raises(ForgettingError, match="holds no public keys"):
        PublicKeys.read(tmp_path / "keys.json")


def test_a_public_key_under_another_name_is_refused(tmp_path):
    jwk = {**ALICE.public.to_json(), "kid": BOB.public.key_id}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [jwk]}))
    with pytest.raises(ForgettingError, match="thumbprint"):
        PublicKeys.read(tmp_path / "keys.json")


class TestKeyFolder:
    def test_a_key_is_readable_to_its_owner_alone_and_published(self, tmp_path):
        folder = KeyFolder(tmp_path / "keys", clock=lambda: 5.0)
        assert folder.signing_key() is None
        made = folder.create(name="ACME")
        assert (
            folder.signing_key().public
            == made.public
            == PublicKeys.read(folder.public_path)[made.public.key_id]
        )
        assert (made.public.name, made.public.valid_from, made.public.valid_until) == ("ACME", 5.0, None)
        assert (folder.folder.stat().st_mode & 0o777) == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.folder.iterdir()} == {0o600}
        with pytest.raises(ConfigError, match="exists"):
            folder.create()

    def test_rotation_keeps_the_old_public_key_with_its_end_and_no_old_private_key(self, tmp_path):
        times = iter([5.0, 9.0])
        folder = KeyFolder(tmp_path, clock=lambda: next(times))
        with pytest.raises(ConfigError, match="no key"):
            folder.rotate()
        old, pem = folder.create(name="ACME"), (tmp_path / "signing-key.pem").read_bytes()
        new = folder.rotate()
        keys = folder.public_keys()
        assert keys[old.public.key_id].valid_until == keys[new.public.key_id].valid_from == 9.0
        assert keys[new.public.key_id].name == "ACME"
        assert not any(pem in path.read_bytes() for path in tmp_path.iterdir())
        assert keys[old.public.key_id].was_valid_at(7.0)
        assert not keys[old.public.key_id].was_valid_at(10.0)

    def test_no_key_takes_the_place_of_one_in_use_before_a_receipt_is_dated(self, tmp_path):
        in_use, seen = False, []

        def clock():
            seen.append(in_use)
            return 5.0

        folder = KeyFolder(tmp_path, clock=clock)
        old = folder.create()
        rotation = threading.Thread(target=KeyFolder(tmp_path, clock=clock).rotate)
        with folder.key_in_use() as key:
            in_use = True
            rotation.start()
            rotation.join(0.2)  # without the lock it would be over by now
            in_use = False
        rotation.join()
        assert key.public == old.public
        assert seen == [False, False]
        with folder.key_in_use() as key:
            assert key.public != old.public

    @pytest.mark.parametrize("after", range(3))
    def test_a_rotation_that_a_crash_ends_leaves_a_key_that_signs(self, tmp_path, monkeypatch, after):
        folder = KeyFolder(tmp_path)
        folder.create()
        written = []

        def write(path, data):
            if len(written) == after:
                raise OSError("the power failed")
            written.append(path)
            path.write_bytes(data)
            path.chmod(0o600)

        monkeypatch.setattr("streamcl.storage.files.atomic_write", write)
        with pytest.raises(ConfigError, match="the power failed"):
            folder.rotate()
        current = folder.signing_key()
        assert folder.public_keys()[current.public.key_id].valid_until is None

    @pytest.mark.parametrize("name", ["", "signing-key.pem"])
    def test_a_key_that_others_can_read_is_refused(self, tmp_path, name):
        folder = KeyFolder(tmp_path)
        folder.create()
        (tmp_path / name).chmod(0o750)
        with pytest.raises(ConfigError, match="can be read or changed by others"):
            folder.signing_key()

    def test_a_damaged_key_is_refused(self, tmp_path):
        folder = KeyFolder(tmp_path)
        folder.create()
        (tmp_path / "signing-key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
        with pytest.raises(ConfigError, match="holds no signing key"):
            folder.signing_key()

    def test_the_environment_names_the_folder(self, tmp_path):
        assert key_directory({"STREAMCL_KEYS": str(tmp_path)}) == tmp_path
        assert key_directory({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "streamcl"
        assert key_directory({}).parts[-2:] == (".config", "streamcl")


class TestChain:
    def test_the_head_is_signed_anew_with_each_link(self, tmp_path):
        head = hash_chain.ChainHead(tmp_path, "receipt")
        for number in (1, 2):
            path = tmp_path / f"r{number}.json"
            head.write(head.next_link({"n": number}, ALICE), path)
            head.sign(ALICE)
            signed = envelope.read_envelope(tmp_path / hash_chain.HEAD)
            assert signed.verify(known(ALICE), "application/vnd.streamcl.receipt-head+json")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert json.loads(signed.payload) == {"format": 1, "number": number, "sha256": digest}
        link = hash_chain.read_link(tmp_path / "r2.json", "receipt")
        assert link.body["signed_by"] == ALICE.public.key_id
        assert envelope.read_envelope(tmp_path / "r2.dsse").payload == (tmp_path / "r2.json").read_bytes()

    @pytest.mark.parametrize("place", [{"number": "1"}, {"number": True}, {"number": 1.5}, {}])
    def test_a_link_without_a_place_is_refused(self, tmp_path, place):
        body = {"format": 1, "previous": None, **place}
        digest = hashlib.sha256(rfc8785.dumps(body)).hexdigest()
        (tmp_path / "a.json").write_bytes(rfc8785.dumps({**body, "sha256": digest}))
        with pytest.raises(ForgettingError, match=r"a\.json is not a valid receipt"):
            hash_chain.read_links(tmp_path, "receipt")
