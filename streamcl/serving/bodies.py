"""Reads the bodies of requests: images, records, JSON objects."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from streamcl.serving.schemas import MAX_DEADLINE_MS, MAX_REQUEST_IMAGES, MAX_TOP_K, RecordFields

_Model = TypeVar("_Model", bound=BaseModel)
_RECORDS = TypeAdapter(tuple[RecordFields, ...])
RECORDS_FIELD = "records"
"""The field of a form with what is known about its images."""
MAX_FIELD_BYTES = 1 << 20
MAX_JSON_BODY_BYTES = 4 << 20
"""Of a JSON object, which takes far more memory once it is parsed."""


def top_k_of(request: Request) -> int:
    """Return how many classes are asked for. Raise HTTPException 400."""
    given = request.query_params.get("top_k", "1")
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= MAX_TOP_K):
        raise HTTPException(400, f"top_k is a number from 1 to {MAX_TOP_K}")
    return int(given)


def deadline_of(request: Request) -> float | None:
    """Return the seconds in which to predict; None where the request sets none. Raise HTTPException 400."""
    given = request.query_params.get("deadline_ms")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= MAX_DEADLINE_MS):
        raise HTTPException(400, f"deadline_ms is a number from 1 to {MAX_DEADLINE_MS}")
    return int(given) / 1000


async def json_of(request: Request, subject: str) -> dict[str, Any]:
    """Return the JSON object in the body. Raise HTTPException 400, 413 or 415, which names the subject."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, f"{subject} is sent as application/json")
    body = await request.body()
    if len(body) > MAX_JSON_BODY_BYTES:
        raise HTTPException(413, f"{subject} may have {MAX_JSON_BODY_BYTES} bytes")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise HTTPException(400, f"{subject} is a JSON object")
    return fields


def checked(model: type[_Model], fields: dict[str, Any]) -> _Model:
    """Return the object with these fields. Raise HTTPException 422 with what is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(422, _brief(error)) from None


async def images_of(request: Request) -> list[bytes]:
    """Return the files of a multipart form, or the body. Raise HTTPException 400."""
    if not _is_form(request):
        return _none_empty([await request.body()])
    async with request.form(max_files=MAX_REQUEST_IMAGES, max_fields=0) as form:
        return _none_empty(await _files(form))


async def pushed_records_of(request: Request) -> list[dict[str, Any]]:
    """Return the records: the body with fields in the query, or a form with `records`, one object a file.

    Raise HTTPException 400 or 422.
    """
    if not _is_form(request):
        query = dict(request.query_params)
        if "subject" in query:  # addresses are written to logs on their way
            raise HTTPException(400, f"a subject is sent in the field {RECORDS_FIELD!r} of a form")
        fields = checked(RecordFields, query)
        return [_record(fields, image) for image in _none_empty([await request.body()])]
    limits = {"max_files": MAX_REQUEST_IMAGES, "max_fields": 1, "max_part_size": MAX_FIELD_BYTES}
    async with request.form(**limits) as form:
        images = _none_empty(await _files(form))
        given = form.get(RECORDS_FIELD)
    try:
        known = _RECORDS.validate_json(given) if isinstance(given, str) else (RecordFields(),) * len(images)
    except ValidationError as error:
        raise HTTPException(422, f"the field {RECORDS_FIELD!r}: {_brief(error)}") from None
    if len(known) != len(images):
        raise HTTPException(400, f"{RECORDS_FIELD!r} has {len(known)} objects for {len(images)} images")
    return [_record(fields, image) for fields, image in zip(known, images, strict=True)]


def _record(fields: RecordFields, image: bytes) -> dict[str, Any]:
    return {**fields.model_dump(exclude_none=True), "image": image}


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _files(form: FormData) -> list[bytes]:
    return [await each.read() for _, each in form.multi_items() if isinstance(each, UploadFile)]


def _none_empty(images: list[bytes]) -> list[bytes]:
    if not images or not all(images):
        raise HTTPException(400, "send an image as the body, or files as multipart/form-data; none is empty")
    return images


def _brief(error: ValidationError) -> str:
    """Return the first fault, without the value, which may be personal."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
