"""Requests and answers of the Open Inference Protocol (version 2, REST): JSON, and its binary extension."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamcl.serving.schemas import (
    MAX_REQUEST_IMAGES,
    MAX_TOP_K,
    ForeignMessage,
    ImageResult,
    PredictResponse,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header with the length of the JSON before the tensors in binary form."""
IMAGE = "image"
OUTPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "class": ("BYTES", (-1,)),
    "confidence": ("FP32", (-1,)),
    "top_classes": ("BYTES", (-1, -1)),
    "probabilities": ("FP32", (-1, -1)),
}
"""The outputs with data type and shape; the first two are those of a request that names none."""
MAX_JSON_BYTES = 16 << 20
"""Of the JSON of a request: numbers in JSON take many times their size in memory."""

_LENGTH = struct.Struct("<I")
_Side = Annotated[int, Field(ge=0, le=1 << 31)]


class MalformedTensor(Exception):
    """A request does not follow the protocol, or is not of this model; the message says how."""


class InputParameters(ForeignMessage):
    """Of an input: the bytes that it has after the JSON; None where its data are in the JSON."""

    binary_data_size: int | None = Field(None, ge=0)


class InputTensor(ForeignMessage):
    """The input "image": BYTES [N], encoded images (in JSON as base64), or UINT8 [N, H, W, 3], RGB pixels."""

    name: Literal["image"]
    datatype: Literal["BYTES", "UINT8"]
    shape: tuple[_Side, ...] = Field(min_length=1, max_length=4)
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(ForeignMessage):
    """Of an output: whether it comes after the JSON; by default as `binary_data_output` says."""

    binary_data: bool | None = None


class RequestedOutput(ForeignMessage):
    """An output that is asked for."""

    name: Literal["class", "confidence", "top_classes", "probabilities"]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(ForeignMessage):
    """Of a request. top_k: columns of "top_classes" and "probabilities"."""

    binary_data_output: bool = False
    top_k: int = Field(1, ge=1, le=MAX_TOP_K)


class InferenceRequest(ForeignMessage):
    """The JSON of a request."""

    id: str | None = Field(None, max_length=1000)
    parameters: RequestParameters = RequestParameters()
    inputs: tuple[InputTensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[RequestedOutput, ...] = Field((), max_length=len(OUTPUTS))


class OutputTensor(ForeignMessage):
    """An output in an answer; without `data` its bytes come after the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class InferenceResponse(ForeignMessage):
    """The JSON of an answer."""

    model_name: str
    model_version: str = Field(description="Number of the snapshot that predicted.")
    id: str | None = None
    parameters: dict[str, int] = Field(description="offset and step of the stream that were learned then.")
    outputs: tuple[OutputTensor, ...]


class TensorDescription(ForeignMessage):
    """An input or output of a model; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(ForeignMessage):
    """A model that is served; `versions` has the one in use, none before the first."""

    name: str
    versions: tuple[str, ...]
    platform: str = "streamcl"
    inputs: tuple[TensorDescription, ...] = (TensorDescription(name=IMAGE, datatype="BYTES", shape=(-1,)),)
    outputs: tuple[TensorDescription, ...] = tuple(
        TensorDescription(name=name, datatype=datatype, shape=shape)
        for name, (datatype, shape) in OUTPUTS.items()
    )


class ServerMetadata(ForeignMessage):
    """The server."""

    name: str = "streamcl"
    version: str
    extensions: tuple[str, ...] = ("binary_tensor_data",)


class InferenceError(ForeignMessage):
    """An error as the protocol has it."""

    error: str


def split_body(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object of a body, and the bytes after it. Raise MalformedTensor."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
            raise MalformedTensor(f"{HEADER_LENGTH} is no length")
        length = int(header_length)
        if length > len(body):
            raise MalformedTensor(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise MalformedTensor(f"the JSON has {length} bytes, more than {MAX_JSON_BYTES}; send binary tensors")
    try:
        fields = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise MalformedTensor("the body does not begin with JSON") from None
    if not isinstance(fields, dict):
        raise MalformedTensor("a request is a JSON object")
    return fields, body[length:]


def images_of_tensor(tensor: InputTensor, binary: bytes) -> list[bytes]:
    """Return the encoded images of the input; pixels get the header of a PPM file, which costs nothing.

    binary: the bytes after the JSON. Raise MalformedTensor.
    """
    count = tensor.shape[0]
    if not 1 <= count <= MAX_REQUEST_IMAGES:
        raise MalformedTensor(f"a request has 1 to {MAX_REQUEST_IMAGES} images, not {count}")
    if (tensor.data is None) == (tensor.parameters.binary_data_size is None):
        raise MalformedTensor("an input has either data or binary_data_size")
    if len(binary) != (tensor.parameters.binary_data_size or 0):
        raise MalformedTensor(f"{len(binary)} bytes follow the JSON, not binary_data_size")
    if tensor.datatype == "BYTES":
        return _encoded_images(tensor, binary, count)
    return _pixel_images(tensor, binary)


def response_body(name: str, request: InferenceRequest, found: PredictResponse) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON where tensors follow in binary form."""
    requested = request.outputs or tuple(RequestedOutput(name=each) for each in ("class", "confidence"))
    described, trailing = [], []
    for output in requested:
        wants_binary = output.parameters.binary_data
        binary = request.parameters.binary_data_output if wants_binary is None else wants_binary
        values = _values(output.name, found.predictions, request.parameters.top_k)
        described.append(_described(output.name, values, None if binary else _plain(values)))
        if binary:
            trailing.append(_serialised(values))
            size = {"binary_data_size": len(trailing[-1])}
            described[-1] = described[-1].model_copy(update={"parameters": size})
    document = InferenceResponse(
        model_name=name,
        model_version=str(found.model.version),
        id=request.id,
        parameters={"offset": found.model.offset, "step": found.model.step},
        outputs=tuple(described),
    )
    header = document.model_dump_json(exclude_none=True).encode()
    return header + b"".join(trailing), len(header) if trailing else None


def _encoded_images(tensor: InputTensor, binary: bytes, count: int) -> list[bytes]:
    if len(tensor.shape) != 1:
        raise MalformedTensor("an input of BYTES has the shape [N]")
    images = list(_elements(binary)) if tensor.data is None else list(map(_from_base64, tensor.data))
    if len(images) != count:
        raise MalformedTensor(f"there are {len(images)} images; the shape says {count}")
    return images


def _pixel_images(tensor: InputTensor, binary: bytes) -> list[bytes]:
    if len(tensor.shape) != 4 or tensor.shape[3] != 3:
        raise MalformedTensor("an input of UINT8 has the shape [N, height, width, 3]")
    size = math.prod(tensor.shape)
    pixels = np.frombuffer(binary, np.uint8) if tensor.data is None else _bytes_of(tensor.data)
    if len(pixels) != size:
        raise MalformedTensor(f"there are {len(pixels)} numbers; the shape says {size}")
    count, height, width, _ = tensor.shape
    head = f"P6 {width} {height} 255\n".encode()
    return [head + each.tobytes() for each in pixels.reshape(count, -1)]


def _elements(binary: bytes) -> Iterator[bytes]:
    """Yield the elements of BYTES in binary form: each after its length, 4 bytes, little-endian."""
    place = 0
    while place < len(binary):
        if place + _LENGTH.size > len(binary):
            raise MalformedTensor("a length is cut short")
        (length,) = _LENGTH.unpack_from(binary, place)
        place += _LENGTH.size
        if place + length > len(binary):
            raise MalformedTensor("an image is cut short")
        yield binary[place : place + length]
        place += length


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise MalformedTensor("BYTES in JSON are strings of base64") from None


def _bytes_of(data: list[Any]) -> npt.NDArray[np.uint8]:
    """Return the numbers of nested lists, in one row."""
    try:
        numbers = np.asarray(data)
    except (ValueError, OverflowError):
        raise MalformedTensor("the data are not a rectangle of numbers") from None
    if numbers.dtype.kind not in "iu" or (numbers.size and (numbers.min() < 0 or numbers.max() > 255)):
        raise MalformedTensor("UINT8 are whole numbers from 0 to 255")
    return numbers.astype(np.uint8).reshape(-1)


def _values(name: str, results: Sequence[ImageResult], top_k: int) -> npt.NDArray[Any]:
    """Return an output; where no class is known, or fewer than `top_k`, "" with probability 0."""
    if name == "class":
        return np.array([each.label or "" for each in results], dtype=object)
    if name == "confidence":
        return np.array([each.confidence for each in results], dtype=np.float32)
    rows = [[*each.top, *[None] * (top_k - len(each.top))] for each in results]
    if name == "top_classes":
        named = [["" if each is None else each.label for each in row] for row in rows]
        return np.array(named, dtype=object).reshape(len(rows), top_k)
    numbers = [[0.0 if each is None else each.confidence for each in row] for row in rows]
    return np.array(numbers, dtype=np.float32).reshape(len(rows), top_k)


def _described(name: str, values: npt.NDArray[Any], data: list[Any] | None) -> OutputTensor:
    return OutputTensor(name=name, datatype=OUTPUTS[name][0], shape=values.shape, data=data)


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Return the values as JSON has them: in one row."""
    found: list[Any] = values.reshape(-1).tolist()
    return found


def _serialised(values: npt.NDArray[Any]) -> bytes:
    if values.dtype != object:
        return values.astype("<f4").tobytes()
    encoded = (each.encode() for each in values.reshape(-1))
    return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)
