"""`streamcl serve`: predictions while a stream is learned, requests to forget, and processes that die."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conditions import wait_for
from failing_learner import learn
from live_server import LiveServer, serving
from pictures import picture

from streamcl.requests.status import PENDING
from streamcl.runs.learner import load_learner
from streamcl.serving.client import Client, ServerError
from streamcl.serving.server import ServerOptions, serve_run
from streamcl.serving.service import ServedRun
from streamcl.storage.snapshots import SNAPSHOTS, list_snapshots

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose stream has ended."""
    with serving(tmp_path_factory.mktemp("served")) as started:
        wait_for(lambda: started.client.status().learning == "finished")
        wait_for(lambda: started.client.status().model == started.client.status().newest)
        yield started
        wait_for((started.run / "summary.json").exists)
        assert started.stop() == 143
    assert not list((started.run / SNAPSHOTS).glob(".tmp-*"))


def test_images_in_every_form_have_the_classes_that_the_learner_gives(server, tmp_path):
    pixels = [picture("bee", number) for number in range(3)]
    found = server.client.predict(*pixels, top_k=4)
    learner, _ = load_learner(server.run, fitted=True)
    from streamcl.events import Sample

    expected = learner.predict([Sample("x", each) for each in pixels])
    assert [each.label for each in found.predictions] == [each.label for each in expected]
    confidences = [each.confidence for each in expected]
    assert [each.confidence for each in found.predictions] == pytest.approx(confidences, abs=1e-4)
    assert {len(each.top) for each in found.predictions} == {4}
    assert found.model.offset == 160
    from PIL import Image

    Image.fromarray(pixels[0]).save(tmp_path / "one.png")
    for form in (tmp_path / "one.png", (tmp_path / "one.png").read_bytes(), Image.fromarray(pixels[0])):
        assert server.client.predict(form).predictions[0].label == expected[0].label


def test_one_bad_image_of_several_is_said_beside_the_others(server):
    good = picture("bee", 1)
    first, bad = server.client.predict(good, b"no image").predictions
    assert first.error is None
    assert (bad.label, bad.confidence) == (None, 0.0)
    assert "not an image" in bad.error
    with pytest.raises(ServerError, match="not an image") as refused:
        server.client.predict(b"no image")
    assert refused.value.status == 422


def test_a_deadline_shortens_predictions_and_the_answer_and_the_metrics_say_so(server):
    pixels = [picture("bee", number) for number in range(3)]
    plain = server.client.predict(*pixels).predictions
    assert {(each.exit, each.work) for each in plain} == {(None, None)}
    found = server.client.predict(*pixels, deadline_ms=60_000).predictions
    assert [each.label for each in found] == [each.label for each in plain]
    assert {each.work for each in found} == {1.0}
    (last,) = {each.exit for each in found}
    text = raw(server, "GET /metrics")[2].decode()
    assert f'streamcl_predicted_by_deadline_images_total{{exit="{last}"}} 3.0' in text
    assert "streamcl_missed_deadlines_total" in text


def test_status_health_and_metrics(server):
    status = server.client.status()
    assert (status.run, status.learning, status.ready) == ("tiny", "finished", True)
    assert (status.predictors.ready, status.predictors.configured, status.waiting) == (1, 1, 0)
    assert raw(server, "GET /health/live")[0] == 200
    code, headers, body = raw(server, "GET /health/ready")
    assert (code, json.loads(body)["learning"]) == (200, "finished")
    code, headers, body = raw(server, "GET /metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    text = body.decode()
    for name in ("http_requests_total", "predicted_images_total", "predictors_ready", "model_offset_records"):
        assert f"streamcl_{name}" in text
    assert 'route="/v1/receipts/{request}"' not in text  # nobody has asked yet
    raw(server, "GET /v1/receipts/request-secret")
    raw(server, "GET /no/such/place")
    text = raw(server, "GET /metrics")[2].decode()
    assert "secret" not in text
    assert "such" not in text
    assert 'route="none"' in text


def raw(server, line, headers=(), body=b"", host=None):
    """Send a request as it is; return the code, the headers and the body."""
    import http.client

    method, path = line.split()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.putrequest(method, path, skip_host=host is not None)
    for name, value in (*([("Host", host)] if host else []), *headers, ("Content-Length", str(len(body)))):
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, content


JSON = ("Content-Type", "application/json")
REFUSED = [
    ("POST /v1/predict", [], b"", 400),
    ("POST /v1/predict?top_k=0", [], b"x", 400),
    ("POST /v1/predict?top_k=" + "9" * 5000, [], b"x", 400),
    ("POST /v1/predict?top_k=000000005" + "0" * 5000, [], b"x", 400),
    ("POST /v1/predict?top_k=000000005000000", [], b"x", 400),
    ("POST /v1/predict?deadline_ms=0", [], b"x", 400),
    ("POST /v1/predict?deadline_ms=2.5", [], b"x", 400),
    ("POST /v1/predict?deadline_ms=60001", [], b"x", 400),
    ("POST /v1/predict", [("Content-Type", "multipart/form-data; boundary=x")], b"garbage", 400),
    ("POST /v1/predict", [("Content-Type", "multipart/form-data")], b"garbage", 400),
    ("GET /v1/predict", [], b"", 405),
    ("GET /nothing", [], b"", 404),
    ("GET /v1/receipts/none", [], b"", 404),
    ("GET /v1/receipts/..%2F..%2Fledger", [], b"", 404),
    ("POST /v1/forget", [], b"{}", 415),
    ("POST /v1/forget", [JSON], b"{", 400),
    ("POST /v1/forget", [JSON], b"[" * 100_000, 400),
    ("POST /v1/forget", [JSON], b"[]", 400),
    ("POST /v1/forget", [JSON], b'{"clas": "4"}', 422),
    ("POST /v1/forget", [JSON], b"{}", 422),
]


@pytest.mark.parametrize(("line", "headers", "body", "code"), REFUSED)
def test_what_is_not_a_request_is_a_problem_document(server, line, headers, body, code):
    found, answered, content = raw(server, line, headers, body)
    assert (found, answered["content-type"]) == (code, "application/problem+json")
    assert json.loads(content)["status"] == code


def test_pages_of_other_sites_are_refused(server):
    assert raw(server, "GET /v1/status", [("Origin", "http://evil.example")])[0] == 403
    assert raw(server, "GET /v1/status", [("Origin", "null")])[0] == 403
    assert raw(server, "GET /v1/status", host="evil.example")[0] == 403
    assert raw(server, "GET /v1/status", host="localhost.evil.example:8000")[0] == 403
    assert raw(server, "GET /v1/status", [("Origin", server.url)])[0] == 200
    assert raw(server, "GET /v1/status", host="localhost:1234")[0] == 200
    assert raw(server, "GET /v1/status", host="[::1]:1234")[0] == 200
    assert raw(server, "GET /v1/status", host="127.0.0.2:1234")[0] == 200  # it can be served on, too


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as sent:
        sent.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert sent.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_grows_too_large_is_refused_while_it_comes(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as sent:
        sent.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20))
        sent.sendall(66 * chunk)  # 64 MiB are allowed
        assert sent.recv(100).startswith(b"HTTP/1.1 413")


def test_the_web_process_has_no_torch():
    code = (
        "import sys, streamcl.serving.server, streamcl.serving.app, streamcl.serving.processes; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_class_is_forgotten_while_it_is_served(server):
    client = server.client
    before = client.status().newest.version
    entry = client.forget(label="4", guarantee="exact", key="letter")
    assert entry.status in {*PENDING, "done"}
    assert client.forget(label="4", guarantee="exact", key="letter").id == entry.id
    assert client.wait_for_request(entry.id).status == "done"
    found = client.predict(picture("bee", 1), top_k=100)
    assert found.model.version > before  # from the answer to the receipt on, nothing older is used
    assert "4" not in {each.label for each in found.predictions[0].top}
    assert len(list_snapshots(server.run / SNAPSHOTS)) == 1
    receipt = client.receipt(entry.id)
    assert (receipt["guarantee"], receipt["outcome"]) == ("exact", "done")
    assert "snapshots for serving" in {each["name"] for each in receipt["locations"]}
    with pytest.raises(ServerError, match="another request with different content"):
        client.forget(label="5", guarantee="exact", key="letter")


@pytest.mark.faults
@pytest.mark.slow
def test_a_predictor_that_dies_is_replaced_and_no_request_is_lost(tmp_path):
    with serving(tmp_path) as server:
        image, client = picture("bee", 1), server.client
        wait_for(lambda: client.status().learning == "finished")
        expected = client.predict(image).predictions[0].label
        for number in range(3):
            (pid,) = server.predictors
            os.kill(pid, signal.SIGKILL)
            assert client.predict(image).predictions[0].label == expected  # waits for the new one
            assert client.status().predictors.restarts == number + 1
        (pid,) = server.predictors
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not client.readiness().ready)
        client.wait_until_ready()


@pytest.mark.faults
@pytest.mark.slow
def test_under_load_a_death_costs_no_request(tmp_path):
    with serving(tmp_path) as server, ThreadPoolExecutor(8) as threads:
        image, client = picture("bee", 1), server.client
        wait_for(lambda: client.status().learning == "finished")
        expected = client.predict(image).predictions[0].label
        pending = [threads.submit(client.predict, image) for _ in range(400)]
        for restarts in (1, 2):
            client.wait_until_ready()
            for pid in server.predictors:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda wanted=restarts: client.status().predictors.restarts == wanted)
        found = [each.result().predictions[0].label for each in pending]
    assert found == [expected] * 400


@pytest.mark.faults
@pytest.mark.slow
def test_a_learner_that_dies_leaves_serving_up_and_is_said(tmp_path):
    with serving(tmp_path) as server:
        os.kill(server.learner, signal.SIGKILL)
        wait_for(lambda: server.client.readiness().learning == "stopped")
        assert server.client.readiness().ready
        assert server.client.predict(picture("bee", 1)).predictions[0].error is None
        assert "streamcl_learner_up 0.0" in raw(server, "GET /metrics")[2].decode()
        entry = server.client.forget(label="4")  # durable; carried out when the run goes on
        assert server.client.requests()[0].status == "received"
        assert server.stop() == 143
    with serving(tmp_path) as server:
        assert server.client.wait_for_request(entry.id).status == "done"


@pytest.mark.faults
@pytest.mark.slow
def test_a_killed_web_process_leaves_no_process_behind_and_the_run_goes_on(tmp_path):
    with serving(tmp_path) as server:
        below = [server.learner, *server.predictors]
        weights = weights_of(server.predictors[0])
        assert weights.exists()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(alive(each) for each in below))
    assert not weights.exists()
    with serving(tmp_path) as again:
        wait_for(lambda: again.client.status().learning == "finished")
        assert again.client.status().newest.offset == 160


def weights_of(predictor):
    """The folder of the weights that a predictor has mapped."""
    return Path(re.search(r"/\S+(?=/\w+\.safetensors)", Path(f"/proc/{predictor}/maps").read_text())[0])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_exit_code_of_a_learner_that_fails_is_that_of_the_command(tmp_path):
    said = []
    assert serve_run(ServedRun(tmp_path, "run"), learn, ServerOptions(port=0), said.append) == 2
    assert said == []


@pytest.mark.slow
def test_an_error_of_the_run_is_that_of_the_command(tmp_path):
    with pytest.raises(RuntimeError, match="no such file of weights"):
        LiveServer(tmp_path, backbone={"name": "vit_tiny_patch16_224", "weights": "file:none.bin"})


def test_a_client_says_that_nobody_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ServerError, match="does not answer"):
            client.predict(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ServerError, match="no address of a server"):
        Client("127.0.0.1:8000")
