"""A broker's messages as records and requests: what cannot be read is returned as such, never raised."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.errors import BadRecord, RefusedRequest
from streamcl.events import ForgetRequest
from streamcl.requests.label import Label
from streams.live.brokers.envelope import record_of_fields, record_of_json, request_of_json
from streams.user.label_records import checked_label, label_in
from streams.user.records import RecordPolicy

IMAGE = b"\xff\xd8 bytes of an image"


def test_fields_are_bytes_and_text():
    fields = {"image": IMAGE, "label": b"caf\xc3\xa9", "subject": b"p7", "privacy": b"user", "other": b"\xff"}
    record = {"image": IMAGE, "label": "café", "subject": "p7", "privacy": "user", "id": "cam/1-0"}
    assert record_of_fields(fields, "cam/1-0") == record
    assert record_of_fields({"image": IMAGE, "id": b"mine", "label": b""}, "x") == {
        "image": IMAGE,
        "id": "mine",
    }


def test_an_envelope_holds_the_image_in_base64():
    image = base64.b64encode(IMAGE).decode()
    data = json.dumps({"image": image, "label": 3, "domain": None, "width": 9}).encode()
    assert record_of_fields({"data": data}, "k/1-0") == {"image": IMAGE, "label": 3, "id": "k/1-0"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"image": 3}',
        b'{"image": "no base64"}',
        b"[" * 100_000,
        b'{"image": "\xff"}',
    ],
)
def test_an_envelope_that_cannot_be_read_is_a_bad_record(data):
    assert isinstance(record_of_json(data, "x"), BadRecord)


def test_fields_that_cannot_be_read_are_a_bad_record():
    assert isinstance(record_of_fields({"label": b"a"}, "x"), BadRecord)
    assert isinstance(record_of_fields({"image": IMAGE, "label": b"\xff"}, "x"), BadRecord)


def test_a_request_without_a_key_has_that_of_its_place():
    first, again = (request_of_json(b'{"subject": "p7"}', "forget/1-0") for _ in range(2))
    assert isinstance(first, ForgetRequest)
    assert (first.key, again.key, first.subject) == ("forget/1-0", "forget/1-0", "p7")
    assert request_of_json(b'{"subject": "p7", "key": "k"}', "forget/1-0").key == "k"
    named = request_of_json(b'{"subject": "p7", "id": "r1"}', "forget/1-0")
    assert (named.id, named.key) == ("r1", None)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"subject": 3.5}', b'{"suject": "p7"}', b'{"label": "a", "offset": 5}', b"\xff"],
)
def test_a_request_that_cannot_be_read_is_refused(data):
    assert isinstance(request_of_json(data, "x"), RefusedRequest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
NAMES = st.sampled_from(["image", "label", "id", "key", "ids", "subject", "samples", "offsets", "deadline"])


@given(
    st.one_of(
        st.binary(), st.dictionaries(NAMES, JSON, max_size=4).map(lambda each: json.dumps(each).encode())
    )
)
def test_nothing_is_ever_raised(data):
    assert record_of_json(data, "x") is not None
    assert record_of_fields({"data": data, "label": data}, "x") is not None
    assert request_of_json(data, "x") is not None


def test_a_message_may_be_the_label_of_an_earlier_record():
    expected = {"label_of": "cam/1-0", "label": "café", "withdraw": None}
    fields = {"label_of": b"cam/1-0", "label": "café".encode(), "image": b"ignored"}
    assert record_of_fields(fields, "x") == expected
    envelope = json.dumps({"label_of": "cam/1-0", "label": "café", "image": 3}).encode()
    assert record_of_fields({"data": envelope}, "x") == expected
    assert record_of_json(envelope, "x") == expected
    assert record_of_fields({"label_of": b"r1"}, "x") == {"label_of": "r1", "label": None, "withdraw": None}


def test_a_message_may_take_back_the_label_of_an_earlier_record():
    fields = {"label_of": b"r1", "withdraw": b"true"}
    assert label_in(record_of_fields(fields, "x")) == Label("r1", None)
    for envelope in (
        {"label_of": "r1", "withdraw": True},
        {"label_of": "r1", "withdraw": True, "label": None},
    ):
        assert label_in(record_of_json(json.dumps(envelope).encode(), "x")) == Label("r1", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"withdraw": True, "label": "a"},
        {"withdraw": "yes"},
        {"withdraw": 1},
        {"withdraw": [True]},
        {"withdraw": False},
        {},
        {"label": ""},
    ],
)
def test_a_message_that_neither_gives_a_label_nor_takes_one_back_is_refused(fields):
    label = label_in({"label_of": "r1", **fields})
    assert checked_label(label, RecordPolicy()).fault
    with pytest.raises(BadRecord):
        checked_label(label, RecordPolicy(on_bad_record="fail"))
