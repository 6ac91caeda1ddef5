"""Records and labels that people send to a served run: durable once accepted, learned once."""

import json
import os
import signal

import numpy as np
import pytest
from asgi_calls import application, call
from conditions import wait_for
from live_server import serving
from pictures import encoded_picture, picture

from streamcl.factory.inbox import Inbox
from streamcl.runs.learner import load_learner
from streamcl.serving.bodies import MAX_JSON_BODY_BYTES
from streamcl.serving.client import ServerError
from streams.live.spool.push_channel import PushReceipt, listening

IMAGE = encoded_picture("bee", 1)
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PUSHED = {"source": {"name": "push"}, "max_samples": None, "batch": {"size": 4, "max_wait": "50ms"}}


def part(name, content, more=""):
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def images_form(*contents, records=None):
    parts = [part("image", each, '; filename="a"') for each in contents]
    return b"".join([*parts, *([] if records is None else [part("records", records)]), b"--x--\r\n"])


def detail(answer):
    return json.loads(answer[2])["detail"]


@pytest.fixture
def taking(tmp_path):
    """An application whose learner takes everything; and what it has taken."""
    taken = []

    def take(records):
        taken.extend(records)
        return PushReceipt(tuple(str(each.get("id", "new")) for each in records))

    with listening(tmp_path / "spool", take):
        yield application(tmp_path, inbox=Inbox(tmp_path / "spool", tmp_path / "spool")), taken


def test_an_image_with_its_fields_in_the_query(taking):
    app, taken = taking
    status, _, body = call(app, "POST /v1/records?id=a&label=bee&domain=door", body=[IMAGE])
    assert (status, json.loads(body)) == (202, {"ids": ["a"], "repeated": 0})
    assert taken == [{"id": "a", "label": "bee", "domain": "door", "image": IMAGE}]


def test_images_of_a_form_with_their_fields(taking):
    app, taken = taking
    known = json.dumps([{"id": "a", "subject": "ann"}, {"privacy": "user"}]).encode()
    body = images_form(IMAGE, b"other", records=known)
    status, _, answer = call(app, "POST /v1/records", headers=FORM, body=[body])
    assert (status, json.loads(answer)["ids"]) == (202, ["a", "new"])
    assert taken == [{"id": "a", "subject": "ann", "image": IMAGE}, {"privacy": "user", "image": b"other"}]
    assert call(app, "POST /v1/records", headers=FORM, body=[images_form(IMAGE)])[0] == 202


@pytest.mark.parametrize(
    ("query", "headers", "body", "status", "reason"),
    [
        ("?subject=ann", {}, IMAGE, 400, "a form"),
        ("?colour=red", {}, IMAGE, 422, "colour"),
        ("?privacy=all", {}, IMAGE, 422, "privacy"),
        ("?id=", {}, IMAGE, 422, "id"),
        ("", {}, b"", 400, "none is empty"),
        ("", FORM, images_form(records=b"[]"), 400, "none is empty"),
        ("", FORM, images_form(IMAGE, records=b"[{}, {}]"), 400, "2 objects for 1 images"),
        ("", FORM, images_form(IMAGE, records=b"{}"), 422, "records"),
        ("", FORM, images_form(IMAGE, records=b"\xff"), 422, "records"),
    ],
)
def test_records_that_are_none_are_refused(taking, query, headers, body, status, reason):
    app, taken = taking
    answer = call(app, f"POST /v1/records{query}", headers=headers, body=[body])
    assert answer[0] == status
    assert reason in detail(answer)
    assert not taken


def test_labels_are_taken_together(taking):
    app, taken = taking
    body = json.dumps({"labels": [{"id": "a", "label": "ant"}, {"id": "b", "label": "bee"}]}).encode()
    answer = call(app, "POST /v1/labels", headers=JSON, body=[body])
    assert (answer[0], json.loads(answer[2])) == (202, {"accepted": 2})
    assert taken == [{"label_of": "a", "label": "ant"}, {"label_of": "b", "label": "bee"}]


def test_a_label_is_withdrawn(taking):
    app, taken = taking
    body = json.dumps({"labels": [{"id": "a", "withdraw": True}, {"id": "b", "label": "bee"}]}).encode()
    assert call(app, "POST /v1/labels", headers=JSON, body=[body])[0] == 202
    assert taken == [{"label_of": "a", "withdraw": True}, {"label_of": "b", "label": "bee"}]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[]", 400),
        ("{", 400),
        ("{}", 422),
        ('{"labels": []}', 422),
        ('{"labels": [{"id": "a"}]}', 422),
        ('{"labels": [{"id": "a", "label": ""}]}', 422),
        ('{"labels": [{"id": "a", "label": 3}]}', 422),
        ('{"labels": [{"id": "a", "withdraw": false}]}', 422),
        ('{"labels": [{"id": "a", "withdraw": 1}]}', 422),
        ('{"labels": [{"id": "a", "label": "ant", "withdraw": true}]}', 422),
        ('{"labels": [{"id": "a", "label": "ant", "who": "me"}]}', 422),
    ],
)
def test_labels_that_are_none_are_refused(taking, body, status):
    app, taken = taking
    answer = call(app, "POST /v1/labels", headers=JSON, body=[body.encode()])
    assert answer[0] == status
    assert "ant" not in detail(answer)
    assert not taken
    assert call(app, "POST /v1/labels", body=[body.encode()])[0] == 415


def test_json_of_many_bytes_is_refused_before_it_is_parsed(taking):
    app, taken = taking
    many = b'{"labels": [' + b" " * MAX_JSON_BODY_BYTES + b"]}"
    for route in ("labels", "forget"):
        answer = call(app, f"POST /v1/{route}", headers=JSON, body=[many])
        assert (answer[0], "bytes" in detail(answer)) == (413, True)
    assert not taken


def test_a_run_that_takes_none_says_what_would(tmp_path):
    app = application(tmp_path)
    answer = call(app, "POST /v1/records", body=[IMAGE])
    assert (answer[0], "source: {name: push}" in detail(answer)) == (409, True)
    body = b'{"labels": [{"id": "a", "label": "ant"}]}'
    answer = call(app, "POST /v1/labels", headers=JSON, body=[body])
    assert (answer[0], "labels:" in detail(answer)) == (409, True)


def test_without_a_learner_it_is_to_be_sent_again(tmp_path):
    app = application(tmp_path, inbox=Inbox(tmp_path, tmp_path))
    status, headers, _ = call(app, "POST /v1/records", body=[IMAGE])
    assert (status, headers["retry-after"]) == (503, "1")


def learned(server):
    return server.client.status().newest.offset


@pytest.mark.slow
def test_pushed_records_are_learned_labelled_corrected_and_forgotten(tmp_path):
    labels = {"wait": "1h", "max_waiting": 100}
    own = {"labels": labels, "checkpoint": {"every_seconds": 3600}, **PUSHED}  # no commit brings a snapshot
    with serving(tmp_path, "--publish-every", "0.1", **own) as server:
        client = server.client
        for number in range(4):
            fields = [{"id": f"{name}{number}", "label": name, "subject": name} for name in ("ant", "bee")]
            client.add_records([(picture(each["label"], number), each) for each in fields])
        assert client.add_record(picture("bee", 3), id="bee3", label="bee") == "bee3"  # sent again
        client.add_record(picture("owl", 1), id="late")
        client.add_record(picture("bee", 9), id="wrong", label="ant")
        wait_for(lambda: learned(server) == 10)
        wait_for(lambda: client.predict(picture("bee", 20)).predictions[0].label == "bee")
        client.add_labels({"late": "owl", "wrong": "bee"})
        wait_for(lambda: client.predict(picture("owl", 2)).predictions[0].label == "owl")
        client.withdraw_labels("late", "bee0")
        wait_for(lambda: client.predict(picture("owl", 2)).predictions[0].label != "owl")
        client.add_labels({"late": "owl"})
        wait_for(lambda: client.predict(picture("owl", 2)).predictions[0].label == "owl")
        with pytest.raises(ServerError, match="not an image") as refused:
            client.add_record(b"no image")
        assert refused.value.status == 422
        entry = client.forget(subject="ant")
        assert client.wait_for_request(entry.id).status == "done"
        assert server.stop() == 143
    events = [json.loads(each) for each in (server.run / "events.jsonl").read_text().splitlines()]
    assert [each["offset"] for each in events if each["kind"] == "forget"]
    learner, _ = load_learner(server.run)
    assert set(learner.classes) == {"bee", "owl"}
    assert learner.head.statistics.total == 5  # bee1, bee2, bee3, wrong, late
    everything = b"".join(each.read_bytes() for each in (server.run / "spool").iterdir())
    assert b"ant0" not in everything
    assert b"bee0" in everything


@pytest.mark.faults
@pytest.mark.slow
def test_accepted_records_survive_the_death_of_every_process(tmp_path):
    rng, accepted, tried = np.random.default_rng(0), set(), 0
    for _ in range(4):
        with serving(tmp_path, **PUSHED) as server:
            wait_for((server.run / "spool" / "push.json").exists)
            victim = (server.learner, server.process.pid)[rng.integers(2)]
            kill_at = tried + rng.integers(5, 15)
            while True:
                tried += 1
                if tried == kill_at:
                    os.kill(victim, signal.SIGKILL)
                try:
                    name = f"r{tried}"
                    accepted.add(server.client.add_record(picture("bee", tried), id=name, label="bee"))
                except ServerError:
                    break
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
    with serving(tmp_path, **PUSHED) as server:
        client = server.client
        wait_for((server.run / "spool" / "push.json").exists)
        repeated = client.add_records([(picture("bee", 1), {"id": each}) for each in sorted(accepted)[:64]])
        assert repeated.repeated == min(64, len(accepted))
        client.add_record(picture("bee", 0), id="last", label="bee")
        wait_for(lambda: learned(server) >= len(accepted) + 1)
        assert server.stop() == 143
    lines = (server.run / "predictions.jsonl").read_text().splitlines()
    ids = [json.loads(each)["id"] for each in lines]
    assert len(ids) == len(set(ids))
    assert accepted <= set(ids)
