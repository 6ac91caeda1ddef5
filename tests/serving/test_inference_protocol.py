"""The Open Inference Protocol: tensors in JSON and in binary form, its errors, and a public client."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from asgi_calls import application, call
from conditions import wait_for
from hypothesis import given
from hypothesis import strategies as st
from live_server import serving
from pictures import picture
from PIL import Image

from streamcl.serving.open_inference.inference_protocol import (
    HEADER_LENGTH,
    MAX_JSON_BYTES,
    InferenceRequest,
    InputTensor,
    MalformedTensor,
    images_of_tensor,
    response_body,
    split_body,
)
from streamcl.serving.schemas import ImageResult, ModelVersion, PredictResponse, RankedClass

PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
BYTES = {"name": "image", "datatype": "BYTES", "shape": [2]}
UINT8 = {"name": "image", "datatype": "UINT8", "shape": [2, 4, 5, 3]}


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def serialised(*elements):
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(image)))


def tensor(fields, **others):
    return InputTensor.model_validate({**fields, **others})


@given(st.lists(st.binary(max_size=30), min_size=2, max_size=2))
def test_encoded_images_are_the_same_in_both_forms(images):
    data = [base64.b64encode(each).decode() for each in images]
    assert images_of_tensor(tensor(BYTES, data=data), b"") == images
    binary = serialised(*images)
    assert images_of_tensor(tensor(BYTES, parameters={"binary_data_size": len(binary)}), binary) == images


def test_pixels_are_the_same_in_all_forms():
    found = [
        images_of_tensor(tensor(UINT8, data=PIXELS.tolist()), b""),
        images_of_tensor(tensor(UINT8, data=PIXELS.reshape(-1).tolist()), b""),
        images_of_tensor(tensor(UINT8, parameters={"binary_data_size": PIXELS.size}), PIXELS.tobytes()),
    ]
    for images in found:
        assert np.array_equal([decoded(each) for each in images], PIXELS)


@pytest.mark.parametrize(
    ("fields", "binary", "message"),
    [
        ({**BYTES}, b"", "either data or"),
        ({**BYTES, "data": ["", ""], "parameters": {"binary_data_size": 0}}, b"", "either data or"),
        ({**BYTES, "data": ["eA=="]}, b"", "there are 1 images"),
        ({**BYTES, "data": ["eA==", "?"]}, b"", "strings of base64"),
        ({**BYTES, "data": ["eA==", 7]}, b"", "strings of base64"),
        ({**BYTES, "data": ["eA==", "eA=="]}, b"x", "bytes follow the JSON"),
        ({**BYTES, "shape": [0], "data": []}, b"", "1 to 64 images"),
        ({**BYTES, "shape": [65], "data": []}, b"", "1 to 64 images"),
        ({**BYTES, "shape": [2, 1], "data": ["eA==", "eA=="]}, b"", r"shape \[N\]"),
        ({**BYTES, "parameters": {"binary_data_size": 3}}, b"\1\0\0", "length is cut short"),
        ({**BYTES, "parameters": {"binary_data_size": 5}}, b"\2\0\0\0x", "image is cut short"),
        ({**BYTES, "parameters": {"binary_data_size": 9}}, b"\2\0\0\0x", "bytes follow the JSON"),
        ({**UINT8, "shape": [2, 4, 5, 1], "data": [0] * 40}, b"", "height, width, 3"),
        ({**UINT8, "shape": [2], "data": [0, 1]}, b"", "height, width, 3"),
        ({**UINT8, "data": [0] * 7}, b"", "the shape says 120"),
        ({**UINT8, "shape": [2, 1 << 31, 1 << 31, 3], "data": [0]}, b"", "the shape says"),
        ({**UINT8, "data": [[1], [1, 2]]}, b"", "a rectangle"),
        ({**UINT8, "data": [256] * 120}, b"", "from 0 to 255"),
        ({**UINT8, "data": [-1] * 120}, b"", "from 0 to 255"),
        ({**UINT8, "data": [0.5] * 120}, b"", "from 0 to 255"),
        ({**UINT8, "data": [True] * 120}, b"", "from 0 to 255"),
        ({**UINT8, "data": [10**30] * 120}, b"", "from 0 to 255"),
        ({**UINT8, "data": ["a"] * 120}, b"", "from 0 to 255"),
    ],
)
def test_what_is_no_tensor_of_images_is_refused(fields, binary, message):
    with pytest.raises(MalformedTensor, match=message):
        images_of_tensor(tensor(fields), binary)


def test_the_json_ends_where_the_header_says():
    assert split_body(b'{"a": 1}xyz', "8") == ({"a": 1}, b"xyz")
    assert split_body(b'{"a": 1}', None) == ({"a": 1}, b"")
    for body, length in (
        *((b"{}", "3"), (b"{}", "-1"), (b"{}", "x"), (b"{}", "9" * 5000), (b"{}", "")),
        *((b"[]", None), (b"{", None), (b"[" * 100_000, None), (b"\xff", None)),
        (b" " * (MAX_JSON_BYTES + 1), None),
    ):
        with pytest.raises(MalformedTensor):
            split_body(body, length)


FOUND = PredictResponse(
    model=ModelVersion(version=7, offset=80, step=20, published=0.0),
    predictions=(
        ImageResult(
            label="ä",
            confidence=0.5,
            top=(RankedClass(label="ä", confidence=0.5), RankedClass(label="b", confidence=0.25)),
        ),
        ImageResult(label=None, confidence=0.0, top=()),
    ),
)


def request(**fields):
    return InferenceRequest.model_validate({"inputs": [{**BYTES, "data": ["", ""]}], **fields})


def test_outputs_in_json():
    names = ("class", "confidence", "top_classes", "probabilities")
    asked = request(id="r", parameters={"top_k": 2}, outputs=[{"name": each} for each in names])
    body, length = response_body("run", asked, FOUND)
    assert length is None
    answer = json.loads(body)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("run", "7", "r")
    assert answer["parameters"] == {"offset": 80, "step": 20}
    assert [(each["name"], each["datatype"], each["shape"], each["data"]) for each in answer["outputs"]] == [
        ("class", "BYTES", [2], ["ä", ""]),
        ("confidence", "FP32", [2], [0.5, 0.0]),
        ("top_classes", "BYTES", [2, 2], ["ä", "b", "", ""]),
        ("probabilities", "FP32", [2, 2], [0.5, 0.25, 0.0, 0.0]),
    ]


def test_outputs_in_binary_form():
    body, length = response_body("run", request(parameters={"binary_data_output": True}), FOUND)
    answer, binary = json.loads(body[:length]), body[length:]
    sizes = [each["parameters"]["binary_data_size"] for each in answer["outputs"]]
    assert not [each for each in answer["outputs"] if "data" in each]
    assert binary[: sizes[0]] == serialised("ä".encode(), b"")
    assert np.frombuffer(binary[sizes[0] :], "<f4").tolist() == [0.5, 0.0]
    assert sum(sizes) == len(binary)
    mixed = [{"name": "class", "parameters": {"binary_data": False}}, {"name": "confidence"}]
    body, length = response_body(
        "run", request(parameters={"binary_data_output": True}, outputs=mixed), FOUND
    )
    first, second = json.loads(body[:length])["outputs"]
    assert (first["data"], second["parameters"]) == (["ä", ""], {"binary_data_size": 8})


def test_errors_have_the_form_of_the_protocol(tmp_path):
    app = application(tmp_path)
    infer = "POST /v2/models/run/infer"
    named = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}]}
    for line, headers, body, status in (
        ("GET /v2/models/other", {}, b"", 404),
        ("GET /v2/models/run/versions/3", {}, b"", 404),
        ("POST /v2/models/other/infer", {}, b"{}", 404),
        ("GET /v2/nothing", {}, b"", 404),
        ("GET /v2/models/run/infer", {}, b"", 405),
        ("GET /v2", {"host": "evil.example"}, b"", 403),
        ("GET /v2", {"authorization": "Bearer wrong"}, b"", 401),
        (infer, {}, b"{", 400),
        (infer, {HEADER_LENGTH: "9"}, b"{}", 400),
        (infer, {}, b"{}", 422),
        (infer, {}, json.dumps(named).encode(), 422),
        (infer, {"content-encoding": "gzip"}, b"{}", 415),
        (infer, {"content-length": "99999999999"}, b"{}", 413),
    ):
        code, answered, content = call(app, line, headers=headers, body=[body])
        assert (code, answered["content-type"]) == (status, "application/json"), line
        assert list(json.loads(content)) == ["error"]


def test_without_a_predictor_the_model_is_not_ready(tmp_path):
    app = application(tmp_path)
    assert call(app, "GET /v2/health/live")[0] == 200
    for line in ("GET /v2/health/ready", "GET /v2/models/run/ready"):
        code, _, content = call(app, line)
        assert (code, json.loads(content)["ready"]) == (503, False)
    assert json.loads(call(app, "GET /v2/models/run")[2])["versions"] == []


@pytest.mark.long
def test_a_public_client(tmp_path):
    """Metadata, health, and inference with tensors of either type and in either form, by tritonclient."""
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    from tritonclient.utils import InferenceServerException

    images = np.stack([picture("bee", number) for number in range(3)])
    files = np.array([encoded(each) for each in images], dtype=object)

    def given(values, datatype, binary):
        found = triton.InferInput("image", list(values.shape), datatype)
        return [found.set_data_from_numpy(values, binary_data=binary)]

    def wanted(binary):
        names = ("class", "confidence", "top_classes", "probabilities")
        return [triton.InferRequestedOutput(each, binary_data=binary) for each in names]

    with serving(tmp_path) as server:
        wait_for(lambda: server.client.status().learning == "finished")
        wait_for(lambda: server.client.status().model == server.client.status().newest)
        expected = server.client.predict(*images, top_k=2)
        labels = [each.label.encode() for each in expected.predictions]
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("tiny")
            assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
            version = str(expected.model.version)
            metadata = client.get_model_metadata("tiny", version)
            assert metadata["versions"] == [version]
            assert [each["name"] for each in metadata["inputs"]] == ["image"]
            parameters = {"top_k": 2}
            for inputs in (
                given(images, "UINT8", binary=True),
                given(images, "UINT8", binary=False),
                given(files, "BYTES", binary=True),
            ):
                for binary in (True, False):
                    found = client.infer("tiny", inputs, outputs=wanted(binary), parameters=parameters)
                    classes = found.as_numpy("class").tolist()
                    assert [each if binary else each.encode() for each in classes] == labels
                    confidences = [each.confidence for each in expected.predictions]
                    assert found.as_numpy("confidence") == pytest.approx(confidences, abs=1e-5)
                    assert found.as_numpy("top_classes").shape == (3, 2)
                    assert found.as_numpy("probabilities").shape == (3, 2)
                    assert found.get_response()["model_version"] == version
            inputs = given(images, "UINT8", binary=True)
            assert client.infer("tiny", inputs, model_version=version).as_numpy("class").tolist() == labels
            for name, number, message in (("other", "", "the model is"), ("tiny", "999", "version in use")):
                with pytest.raises(InferenceServerException, match=message):
                    client.infer(name, inputs, model_version=number)
            broken = given(np.array([b"no image"], dtype=object), "BYTES", binary=True)
            with pytest.raises(InferenceServerException, match=r"image 0: .*not an image"):
                client.infer("tiny", broken)
