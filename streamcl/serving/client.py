"""A client of `streamcl serve`: images in, typed results out; it needs no package beyond streamcl's own."""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
from PIL import Image
from pydantic import ValidationError

from streamcl.errors import StreamclError
from streamcl.events import Pixels
from streamcl.requests.status import PENDING
from streamcl.serving.schemas import (
    ErrorDocument,
    LabelsAccepted,
    PredictResponse,
    Readiness,
    RecordsAccepted,
    RequestEntry,
    RequestList,
    StatusResponse,
)

ImageLike: TypeAlias = bytes | str | PathLike[str] | Pixels | Image.Image
"""An encoded image, the path of one, uint8 RGB pixels [H, W, 3] or a PIL image."""


class ServerError(StreamclError):
    """A request that a server has refused, or could not be reached for.

    status: of HTTP; None without an answer. retry_after: seconds after which to come again, where it says so.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Client:
    """Talks to a server over HTTP; one connection a call, so that several threads may share a client.

    Every method raises ServerError where the server refuses the request or cannot be reached.

        client = streamcl.Client("http://127.0.0.1:8000")
        print(client.predict("inbox/gear_0001.png").predictions[0].label)

    Attributes:
        url: of the server.

    Args:
        url: likewise.
        token: of `streamcl token add`, for a server that needs one; the error of a token that is not valid
            has status 401, that of one whose role may not do something 403.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, token: str | None = None, timeout: float = 90.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise ServerError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000")
        self.url = url
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port, self._timeout = parts.hostname, parts.port, timeout
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ServerError("the token is none: it has characters that no token has")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def __repr__(self) -> str:
        return f"Client({self._host}:{self._port})"

    def predict(self, *images: ImageLike, top_k: int = 1, deadline_ms: int | None = None) -> PredictResponse:
        """Return the predictions of one image or more, in their order, and the model's version.

        Args:
            images: to predict.
            top_k: classes of each.
            deadline_ms: milliseconds in which to predict them, with less work where that is short.
        """
        body, content_type = _form([_encoded(each) for each in images])
        query = {"top_k": top_k} | ({} if deadline_ms is None else {"deadline_ms": deadline_ms})
        headers = {"Content-Type": content_type}
        return PredictResponse.model_validate_json(
            self._call("POST", f"/v1/predict?{urlencode(query)}", body, headers)
        )

    def status(self) -> StatusResponse:
        """Return the state of the server and of its run."""
        return StatusResponse.model_validate_json(self._call("GET", "/v1/status"))

    def readiness(self) -> Readiness:
        """Return whether predictions are answered, and whether the stream is learned; never raises 503."""
        content = self._call("GET", "/health/ready", expected=(200, 503))
        try:
            return Readiness.model_validate_json(content)
        except ValidationError:
            raise ServerError("the server gives details only to those with a token", status=401) from None

    def wait_until_ready(self, seconds: float = 60.0) -> Readiness:
        """Return the readiness once predictions are answered. Raise ServerError where that takes too long."""
        end = time.monotonic() + seconds
        while not (found := self.readiness()).ready:
            if time.monotonic() > end:
                raise ServerError(f"not ready after {seconds:g} s")
            time.sleep(0.1)
        return found

    def add_record(self, image: ImageLike, **fields: str) -> str:
        """Put an image into the stream, of a run whose source is "push"; return its id. It is durable then.

        Args:
            image: the record's.
            fields: what is known of it: id, label, subject, domain, privacy. A record with an id may be sent
                again after an error.
        """
        return self.add_records([(image, fields)]).ids[0]

    def add_records(self, records: Sequence[tuple[ImageLike, Mapping[str, str]]]) -> RecordsAccepted:
        """Put images with their fields into the stream, all or none; see `add_record`."""
        form = {"records": json.dumps([dict(fields) for _, fields in records])}
        body, content_type = _form([_encoded(image) for image, _ in records], form)
        headers = {"Content-Type": content_type}
        return RecordsAccepted.model_validate_json(self._call("POST", "/v1/records", body, headers))

    def add_labels(self, labels: Mapping[str, str]) -> LabelsAccepted:
        """Put classes of earlier records into the stream, by their ids; durable on return.

        One of a record that was learned under another class corrects it, where the learner can do so exactly.
        """
        return self._send_labels([{"id": name, "label": label} for name, label in labels.items()])

    def withdraw_labels(self, *ids: str) -> LabelsAccepted:
        """Take back the labels of earlier records, by their ids; durable on return.

        A record that was learned is taken out, where the learner can do so exactly, and waits for a label.
        """
        return self._send_labels([{"id": name, "withdraw": True} for name in ids])

    def forget(self, **fields: Any) -> RequestEntry:
        """Submit a request to forget, by the fields of `streamcl.ForgetRequest`; it is durable on return."""
        headers = {"Content-Type": "application/json"}
        body = json.dumps(fields).encode()
        return RequestEntry.model_validate_json(self._call("POST", "/v1/forget", body, headers))

    def requests(self) -> tuple[RequestEntry, ...]:
        """Return all requests to forget, in the order of their arrival."""
        return RequestList.model_validate_json(self._call("GET", "/v1/receipts")).requests

    def wait_for_request(self, request: str, seconds: float = 60.0) -> RequestEntry:
        """Return a request once it is over. Raise ServerError where that takes too long."""
        end = time.monotonic() + seconds
        while True:
            found = next((each for each in self.requests() if each.id == request), None)
            if found is None:
                raise ServerError(f"there is no request {request!r}", status=404)
            if found.status not in PENDING:
                return found
            if time.monotonic() > end:
                raise ServerError(f"request {request!r} is still {found.status} after {seconds:g} s")
            time.sleep(0.1)

    def receipt(self, request: str) -> dict[str, Any]:
        """Return the receipt of a request's last attempt, as in RUN/receipts."""
        content: dict[str, Any] = json.loads(self._call("GET", f"/v1/receipts/{quote(request, safe='')}"))
        return content

    def _send_labels(self, labels: Sequence[Mapping[str, Any]]) -> LabelsAccepted:
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"labels": labels}).encode()
        return LabelsAccepted.model_validate_json(self._call("POST", "/v1/labels", body, headers))

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        *,
        expected: Sequence[int] = (200, 202),
    ) -> bytes:
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, path, body, {**headers, **self._headers})
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise ServerError(f"{self._host}:{self._port} does not answer: {error!r}") from error
        finally:
            connection.close()
        if response.status not in expected:
            raise _error(response, content)
        return content


def _error(response: HTTPResponse, content: bytes) -> ServerError:
    try:
        detail = ErrorDocument.model_validate_json(content).detail
    except ValidationError:
        detail = content[:200].decode(errors="replace")
    after = response.headers.get("Retry-After", "")
    return ServerError(
        f"{response.status} {response.reason}: {detail}",
        status=response.status,
        retry_after=float(after) if after.isdecimal() else None,
    )


def _encoded(image: ImageLike) -> bytes:
    """Return an image as the bytes of a file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    file = io.BytesIO()
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    opened.save(file, "PNG")
    return file.getvalue()


def _form(images: Sequence[bytes], fields: Mapping[str, str] = {}) -> tuple[bytes, str]:
    """Return a multipart form with the images and fields, and its content type."""
    boundary = f"streamcl-{secrets.token_hex(16)}"
    head = 'Content-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    parts = [f"--{boundary}\r\n{head}".encode() + each + b"\r\n" for each in images]
    for name, value in fields.items():
        head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(f"--{boundary}\r\n{head}{value}\r\n".encode())
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"
