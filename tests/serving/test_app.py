"""The routes without processes: what is not there is not healthy, limits hold, and the document is true."""

import json

import jsonschema
import openapi_spec_validator
import pytest
from asgi_calls import application, call
from starlette.routing import Route

from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.serving.openapi import openapi_document
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots


def test_without_a_predictor_it_is_live_and_not_ready(tmp_path):
    app = application(tmp_path)
    assert call(app, "GET /health/live")[0] == 200
    status, _, body = call(app, "GET /health/ready")
    assert (status, json.loads(body)["ready"], json.loads(body)["model"]) == (503, False, None)


def test_learning_is_said_as_it_is(tmp_path):
    snapshots = Snapshots(tmp_path / SNAPSHOTS)
    said = []
    for finished in (False, True):
        snapshots.publish(1, 1, {}, {"finished": finished})
        said.append(json.loads(call(application(tmp_path), "GET /v1/status")[2])["learning"])
    said.append(json.loads(call(application(tmp_path, alive=False), "GET /health/ready")[2])["learning"])
    assert said == ["running", "finished", "stopped"]


def test_a_full_queue_is_429_and_says_when_to_come_again(tmp_path):
    app = application(tmp_path, capacity=0)
    status, headers, body = call(app, "POST /v1/predict", body=[b"image"])
    assert (status, headers["retry-after"], headers["content-type"]) == (429, "1", "application/problem+json")
    assert json.loads(body)["title"] == "Too Many Requests"


def test_more_images_than_may_wait_are_refused_together(tmp_path):
    app = application(tmp_path, capacity=2)
    part = '--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nbytes\r\n'
    body = (3 * part + "--x--\r\n").encode()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert call(app, "POST /v1/predict", headers=headers, body=[body])[0] == 429


@pytest.mark.parametrize("declared", [{}, {"content-length": "10"}, {"content-length": "99999"}])
def test_a_body_is_counted_as_it_comes_whatever_its_header_says(tmp_path, declared):
    app = application(tmp_path, max_body_bytes=100)
    for line, kind in (("POST /v1/predict", "image/png"), ("POST /v1/forget", "application/json")):
        headers = {"content-type": kind, **declared}
        status, answered, _ = call(app, line, headers=headers, body=[b"x" * 60, b"x" * 60])
        assert (status, answered["content-type"]) == (413, "application/problem+json")


def test_a_body_that_does_not_come_is_given_up(tmp_path):
    app = application(tmp_path, body_seconds=0.05)
    assert call(app, "POST /v1/predict", body=[b"x", 30.0, b"x"])[0] == 408


def test_the_document_is_valid_openapi_and_has_every_route(tmp_path):
    document = openapi_document()
    openapi_spec_validator.validate(document)
    routes = {
        (route.path, method.lower())
        for route in application(tmp_path).routes
        if isinstance(route, Route)
        for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, each in document["paths"].items() for method in each} == routes
    assert json.loads(call(application(tmp_path), "GET /openapi.json")[2]) == document


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("GET /v1/status", b""),
        ("GET /health/live", b""),
        ("GET /health/ready", b""),
        ("GET /v1/receipts", b""),
        ("GET /v1/receipts/none", b""),
        ("POST /v1/predict", b""),
        ("POST /v1/forget", b'{"label": "4"}'),
        ("POST /v1/forget", b"{}"),
    ],
)
def test_what_is_answered_is_as_the_document_says(tmp_path, line, body):
    document = openapi_document()
    app = application(tmp_path)
    headers = {"content-type": "application/json" if "forget" in line else "image/png"}
    status, answered, content = call(app, line, headers=headers, body=[body])
    method, path = line.lower().split()
    operation = document["paths"][path.replace("/none", "/{request}")][method]
    described = operation["responses"][str(status)].get("content", {})
    if described:
        schema = {**described[answered["content-type"]]["schema"], "components": document["components"]}
        jsonschema.validate(json.loads(content), schema)


def test_status_and_metrics_say_how_many_records_wait_at_the_source(tmp_path):
    for options, lag in (({"lag": 7}, 7), ({}, None), ({"lag": 7, "alive": False}, None)):
        app = application(tmp_path, **options)
        assert json.loads(call(app, "GET /v1/status")[2])["lag"] == lag
        found = call(app, "GET /metrics")[2].decode().split("streamcl_source_lag_records ")[-1].split()[0]
        assert found == ("NaN" if lag is None else "7.0")


def test_a_request_is_in_the_ledger_when_it_is_answered(tmp_path):
    app = application(tmp_path)
    body = [json.dumps({"label": "4", "key": "k"}).encode()]
    status, _, content = call(app, "POST /v1/forget", headers={"content-type": "application/json"}, body=body)
    assert status == 202
    with Ledger(tmp_path / LEDGER) as ledger:
        (entry,) = ledger.entries()
    assert (entry.id, entry.status) == (json.loads(content)["id"], "received")
    assert '"4"' not in call(app, "GET /v1/receipts")[2].decode()  # what is to be forgotten is not shown
