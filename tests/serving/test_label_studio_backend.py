"""The Label Studio ML backend: projects, tasks and their images, annotations that become labels."""

import base64
import http.server
import json
import subprocess
import sys
import threading

import pytest
from asgi_calls import application, call
from conditions import wait_for
from live_server import serving
from pictures import encoded_picture, picture

from streamcl.errors import BadRecord
from streamcl.factory.inbox import Inbox
from streamcl.forgetting.annotations import ANNOTATIONS, Annotations
from streamcl.serving.client import Client
from streamcl.serving.label_studio.label_studio import (
    LabellingTask,
    LabelStudioServer,
    choices_control,
    image_of_task,
    server_from,
)
from streamcl.serving.label_studio.label_studio_events import AnnotationEvent, changes_of
from streamcl.serving.schemas import ImageResult
from streams.live.spool.push_channel import PushReceipt, listening

CONFIG = """<View><Image name="shown" value="$picture"/><Text name="t" value="$text"/>
<Choices name="other" toName="t"><Choice value="x"/></Choices>
<Choices name="kind" toName="shown"><Choice value="ant"/><Choice value="bee"/></Choices></View>"""


def event(action="ANNOTATION_CREATED", *, choices=("bee",), task=None, **annotation):
    parts = [{"type": "choices", "from_name": "kind", "value": {"choices": list(choices)}}]
    return {
        "action": action,
        "task": {"id": 7, "data": {"picture": "x"}} if task is None else task,
        "annotation": {"result": parts, **annotation},
        "project": {"id": 1},
    }


def post(app, path, fields):
    headers = {"content-type": "application/json"}
    status, _, content = call(app, f"POST {path}", headers=headers, body=[json.dumps(fields).encode()])
    return status, json.loads(content)


def test_the_choices_of_an_image_are_found_in_the_configuration():
    found = choices_control(CONFIG)
    assert (found.name, found.image_name, found.image_key) == ("kind", "shown", "picture")
    assert found.values == {"ant", "bee"}


@pytest.mark.parametrize(
    "config",
    [
        "",
        "<View>",
        "<View/>",
        '<View><Image name="i" value="$x"/><RectangleLabels name="k" toName="i"/></View>',
        '<View><Image name="i" value="x"/><Choices name="k" toName="i"/></View>',
        '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {chr(98 + n)} "{("&" + chr(97 + n) + ";") * 10}">' for n in range(12))
        + "]><l>&m;</l>",
    ],
)
def test_a_configuration_without_them_is_refused(config):
    with pytest.raises(BadRecord, match="labelling configuration"):
        choices_control(config)


def test_a_class_that_is_no_choice_is_no_prediction():
    control = choices_control(CONFIG)
    bee = ImageResult(label="bee", confidence=0.75, top=())
    (part,) = control.result_of(bee, "3").result
    assert (part["from_name"], part["to_name"], part["value"]) == ("kind", "shown", {"choices": ["bee"]})
    for label in ("owl", None):
        found = control.result_of(ImageResult(label=label, confidence=0.75, top=()), "3")
        assert (found.result, found.score, found.model_version) == ((), 0.0, "3")


def changes(fields, control=None):
    found = changes_of(AnnotationEvent.model_validate(fields), control)
    return [(each.number, each.record, each.label) for each in found]


def labelled(fields, control=None):
    ((_, record, label),) = changes(fields, control)
    return record, label


def test_an_annotation_is_a_label_of_its_record():
    assert labelled(event()) == ("task-7", "bee")
    assert labelled(event("ANNOTATION_UPDATED", task={"id": 7, "data": {"id": "r1"}})) == ("r1", "bee")
    assert labelled(event(task={"data": {"id": 5}})) == ("5", "bee")
    assert labelled(event(choices=())) == ("task-7", None)
    assert labelled(event(was_cancelled=True)) == ("task-7", None)
    assert changes(event("PROJECT_UPDATED")) == changes({"action": "START_TRAINING"}) == []
    two = event()
    two["annotation"]["result"].append(
        {"type": "choices", "from_name": "mood", "value": {"choices": ["calm"]}}
    )
    two["annotation"]["result"].append({"type": "rectanglelabels", "value": {"x": 1}})
    assert labelled(two, "mood") == ("task-7", "calm")
    for wrong in (two, event(choices=("ant", "bee")), event(task={"data": {}}), {**event(), "task": None}):
        with pytest.raises(BadRecord):
            labelled(wrong)


def many(*annotations, tasks=(7, 8)):
    """An event of several annotations, each of the task of its number."""
    parts = event()["annotation"]["result"]
    return {
        "action": "ANNOTATIONS_CREATED",
        "task": [{"id": number, "data": {}} for number in tasks],
        "annotation": [{"id": number, "task": task, "result": parts} for number, task in annotations],
    }


def test_events_of_several_annotations():
    assert changes(many((1, 8), (2, 7), (3, 8))) == [
        (1, "task-8", "bee"),
        (2, "task-7", "bee"),
        (3, "task-8", "bee"),
    ]
    without_numbers = many((1, None), (2, None))
    assert [record for _, record, _ in changes(without_numbers)] == ["task-7", "task-8"]
    assert changes({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}, {"id": 4}]}) == [
        (3, None, None),
        (4, None, None),
    ]
    assert changes(event("ANNOTATION_DELETED", id=3)) == [(3, None, None)]
    with pytest.raises(BadRecord, match="no task"):
        changes(many((1, 9)))


class Images(http.server.BaseHTTPRequestHandler):
    """Serves an image to those with the key, and redirects."""

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/data/upload/1/a.png")
        else:
            self.send_response(200 if self.headers["Authorization"] == "Token key" else 401)
        self.end_headers()
        self.wfile.write(b"image")

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def images():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_come_from_the_named_server_only(images):
    server = server_from(images, {"LABEL_STUDIO_API_KEY": "key"})

    def image(place, source=server):
        return image_of_task(LabellingTask(data={"picture": place}), "picture", source)

    assert image("/data/upload/1/a.png") == image(f"{images}/data/upload/1/a.png") == b"image"
    assert image("data:image/png;base64,eA==", None) == b"x"
    assert image("data:text/plain,a%20b", None) == b"a b"
    other = images.replace("127.0.0.1", "localhost")
    for place in ("http://192.0.2.1/a.png", "//192.0.2.1/a", "file:///etc/passwd", other, f"{images}@evil"):
        with pytest.raises(BadRecord, match="another server"):
            image(place)
    for place in ("/moved", "/a b\n"):
        with pytest.raises(BadRecord, match="cannot be fetched"):
            image(place)
    with pytest.raises(BadRecord, match="cannot be fetched"):
        image("/a.png", LabelStudioServer(images))
    with pytest.raises(BadRecord, match="names the server"):
        image("/a.png", None)
    for place in ("", None, 7):
        with pytest.raises(BadRecord, match="among its data"):
            image(place)
    with pytest.raises(BadRecord, match="no base64"):
        image("data:image/png;base64,?")
    assert server_from(None, {}) is None


def test_events_without_a_label(tmp_path):
    app = application(tmp_path, inbox=Inbox(labels=tmp_path / "inbox"))
    assert call(app, "GET /health")[0] == 200
    assert post(app, "/setup", {"project": "1.2", "schema": CONFIG}) == (200, {"model_version": "none"})
    assert post(app, "/setup", {"schema": "<View/>"})[0] == 422
    ignored = {"status": "ignored", "record": None, "label": None, "records": 0}
    assert post(app, "/webhook", event(choices=())) == (200, ignored)
    assert post(app, "/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}]}) == (
        200,
        ignored,
    )
    assert post(app, "/webhook", event())[0] == 503  # nobody learns
    assert post(application(tmp_path), "/webhook", event())[0] == 409  # this run takes no labels
    tasks = {"tasks": [{"id": 1, "data": {"picture": "/unreachable"}}], "label_config": CONFIG}
    assert post(app, "/predict", tasks)[1]["results"][0]["result"] == []


def test_deleted_annotations_take_back_their_labels(tmp_path):
    taken = []

    def take(records):
        taken.extend((each["label_of"], each.get("label")) for each in records)
        return PushReceipt(("x",) * len(records))

    def send(fields):
        taken.clear()
        status, answer = post(app, "/webhook", fields)
        assert status == 200
        return answer["status"], dict(taken)

    def deleted(*numbers):
        return {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": number} for number in numbers]}

    app = application(tmp_path, inbox=Inbox(labels=tmp_path / "inbox"))
    assert post(app, "/webhook", event(id=1))[0] == 503  # nobody learns: it may be sent again
    with listening(tmp_path / "inbox", take):
        assert send(event(id=1)) == ("labelled", {"task-7": "bee"})
        assert send(event(choices=("ant",), id=2)) == ("labelled", {"task-7": "ant"})
        assert send(many((3, 8), tasks=(8,))) == ("labelled", {"task-8": "bee"})
        assert send(deleted(2)) == ("labelled", {"task-7": "bee"})
        assert send(deleted(2)) == ("ignored", {})
        assert send(event("ANNOTATION_UPDATED", choices=(), id=3, task={"id": 8})) == (
            "withdrawn",
            {"task-8": None},
        )
        assert send(many((4, 8), (5, 7))) == ("labelled", {"task-8": "bee", "task-7": "bee"})
        assert send(deleted(1, 4, 5, 99)) == ("withdrawn", {"task-7": None, "task-8": None})
        assert send(event("ANNOTATION_DELETED", id=1)) == ("ignored", {})
        assert send(event("ANNOTATION_UPDATED", choices=("ant",), id=1)) == ("labelled", {"task-7": "ant"})
    assert post(app, "/webhook", deleted(1))[0] == 503
    with Annotations(tmp_path / ANNOTATIONS) as known:
        assert known.labels_without([1]) == {"task-7": None}  # still known: it may be sent again


@pytest.mark.long
def test_tasks_are_predicted_and_annotations_are_learned(tmp_path):
    config = {
        "source": {"name": "push"},
        "max_samples": None,
        "batch": {"size": 4, "max_wait": "50ms"},
        "labels": {"wait": "1h", "max_waiting": 100},
        "checkpoint": {"every_samples": 64, "every_seconds": 0.5},  # each drops labels of erased records
    }
    with serving(tmp_path, "--publish-every", "0.1", **config) as server:
        client: Client = server.client
        for number in range(4):
            for name in ("ant", "bee"):
                client.add_record(picture(name, number), id=f"{name}{number}")

        def send(path, fields):
            import urllib.request

            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(server.url + path, json.dumps(fields).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        for number in range(4):
            for name in ("ant", "bee"):
                task = {"id": number, "data": {"id": f"{name}{number}"}}
                answer = send("/webhook", event(choices=(name,), task=task, id=2 * number + (name == "bee")))
                assert (answer["status"], answer["record"]) == ("labelled", f"{name}{number}")
        image = base64.b64encode(encoded_picture("bee", 20)).decode()
        tasks = [
            {"id": 1, "data": {"picture": f"data:image/png;base64,{image}"}},
            {"id": 2, "data": {"picture": "data:image/png;base64,eA=="}},
        ]

        def named_in_annotations():
            return any(b"ant0" in path.read_bytes() for path in server.run.glob(f"{ANNOTATIONS}*"))

        def chosen():
            found = send("/predict", {"tasks": tasks, "label_config": CONFIG})["results"]
            assert found[1]["result"] == []
            return [part["value"]["choices"] for part in found[0]["result"]]

        wait_for(lambda: chosen() == [["bee"]])
        wait_for(lambda: client.status().lag == 0)
        odd = [{"id": number} for number in (1, 3, 5, 7)]
        assert send("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": odd})["records"] == 4
        wait_for(lambda: chosen() == [["ant"]])
        entry = client.forget(ids=["ant0"])
        assert client.wait_for_request(entry.id).status == "done"
        (place,) = [
            each
            for each in client.receipt(entry.id)["locations"]
            if each["name"].startswith("annotations of")
        ]
        assert place["status"] == "erased"
        assert not named_in_annotations()
        send("/webhook", event(choices=("ant",), task={"id": 0, "data": {"id": "ant0"}}, id=50))
        wait_for(lambda: not named_in_annotations())
        assert server.stop() == 143
    receipt = str(server.run / "receipts" / f"{entry.id}.json")
    command = [sys.executable, "-m", "streamcl", "verify", receipt]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ids in the annotations" in verified.stdout, verified.stdout + verified.stderr
    assert verified.returncode == 0
