"""The Label Studio ML backend: projects, tasks and their images, annotations that become labels."""

import base64
import http.server
import json
import threading

import pytest
from asgi_calls import application, call
from conditions import wait_for
from live_server import serving
from pictures import encoded_picture, picture

from streamcl.errors import BadRecord
from streamcl.factory.inbox import Inbox
from streamcl.serving.client import Client
from streamcl.serving.label_studio import (
    AnnotationEvent,
    LabellingTask,
    LabelStudioServer,
    choices_control,
    image_of_task,
    label_of_event,
    server_from,
)
from streamcl.serving.schemas import ImageResult

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


def labelled(fields, control=None):
    return label_of_event(AnnotationEvent.model_validate(fields), control)


def test_an_annotation_is_a_label_of_its_record():
    assert labelled(event()) == ("task-7", "bee")
    assert labelled(event("ANNOTATION_UPDATED", task={"id": 7, "data": {"id": "r1"}})) == ("r1", "bee")
    assert labelled(event(task={"data": {"id": 5}})) == ("5", "bee")
    assert labelled(event(choices=())) is None
    assert labelled(event(was_cancelled=True)) is None
    assert labelled(event("PROJECT_UPDATED")) is None
    assert labelled({"action": "START_TRAINING"}) is None
    two = event()
    two["annotation"]["result"].append(
        {"type": "choices", "from_name": "mood", "value": {"choices": ["calm"]}}
    )
    two["annotation"]["result"].append({"type": "rectanglelabels", "value": {"x": 1}})
    assert labelled(two, "mood") == ("task-7", "calm")
    for wrong in (two, event(choices=("ant", "bee")), event(task={"data": {}}), {**event(), "task": None}):
        with pytest.raises(BadRecord):
            labelled(wrong)


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


def test_events_without_a_label_and_deletions(tmp_path):
    app = application(tmp_path, inbox=Inbox(labels=tmp_path / "inbox"))
    assert call(app, "GET /health")[0] == 200
    assert post(app, "/setup", {"project": "1.2", "schema": CONFIG}) == (200, {"model_version": "none"})
    assert post(app, "/setup", {"schema": "<View/>"})[0] == 422
    ignored = {"status": "ignored", "record": None, "label": None}
    assert post(app, "/webhook", event(choices=())) == (200, ignored)
    status, answer = post(app, "/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}]})
    assert (status, "request to forget" in answer["detail"]) == (409, True)
    assert post(app, "/webhook", event())[0] == 503  # nobody learns
    assert post(application(tmp_path), "/webhook", event())[0] == 409  # this run takes no labels
    tasks = {"tasks": [{"id": 1, "data": {"picture": "/unreachable"}}], "label_config": CONFIG}
    assert post(app, "/predict", tasks)[1]["results"][0]["result"] == []


def test_tasks_are_predicted_and_annotations_are_learned(tmp_path):
    config = {
        "source": {"name": "push"},
        "max_samples": None,
        "batch": {"size": 4, "max_wait": "50ms"},
        "labels": {"wait": "1h", "max_waiting": 100},
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
                answer = send("/webhook", event(choices=(name,), task=task))
                assert answer == {"status": "labelled", "record": f"{name}{number}", "label": name}
        image = base64.b64encode(encoded_picture("bee", 20)).decode()
        tasks = [
            {"id": 1, "data": {"picture": f"data:image/png;base64,{image}"}},
            {"id": 2, "data": {"picture": "data:image/png;base64,eA=="}},
        ]

        def chosen():
            found = send("/predict", {"tasks": tasks, "label_config": CONFIG})["results"]
            assert found[1]["result"] == []
            return [part["value"]["choices"] for part in found[0]["result"]]

        wait_for(lambda: chosen() == [["bee"]])
