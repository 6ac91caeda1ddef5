"""Receipts: what was done about a request, place by place; canonical JSON, each chained to the one before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl import files
from streamcl.errors import ForgettingError
from streamcl.files import Disk
from streamcl.forgetting.page import write_page

RECEIPTS = "receipts"
"""The folder's name in a run directory."""

FORMAT = 1
LIMIT = 64 << 20  # bytes; one with every hash of ten thousand ids has under one
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def receipt_path(folder: Path, request: str, attempt: int = 1) -> Path:
    """Where a request's receipt is. An id that is no plain file name is replaced by its sha256.

    A request that failed and was tried again has one for each attempt, <id>~2.json for the second.
    """
    name = (
        request
        if PLAIN.fullmatch(request)
        else hashlib.sha256(request.encode(errors="surrogatepass")).hexdigest()
    )
    return folder / RECEIPTS / (f"{name}.json" if attempt == 1 else f"{name}~{attempt}.json")


def attempts(folder: Path, request: str) -> int:
    """How many receipts a request has: of all its attempts but the last each says that it failed."""
    number = 0
    while receipt_path(folder, request, number + 1).exists():
        number += 1
    return number


def write_receipt(folder: Path, request: str, content: Mapping[str, Any], *, disk: Disk = files.DISK) -> Path:
    """Chain a receipt to the newest one and write it whole, its page first; one that is there stays."""
    path = receipt_path(folder, request, content.get("attempt", 1))
    if path.exists():
        return path
    files.make_folder(path.parent, disk=disk)
    chain = read_chain(folder)
    previous = hashlib.sha256(chain[-1][0].read_bytes()).hexdigest() if chain else None
    body = {**content, "format": FORMAT, "number": len(chain) + 1, "previous": previous}
    write_page(path, body, disk=disk)
    files.atomic_write(path, canonical({**body, "sha256": _digest(body)}), disk=disk)
    return path


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt whose every byte is as it was written. Raises ForgettingError, saying what is wrong."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LIMIT else b""
        content = json.loads(data)
        claimed = content.pop("sha256")
        whole = data == canonical({**content, "sha256": claimed}) and claimed == _digest(content)
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ForgettingError(f"{path} is no receipt: {error!r:.200}") from error
    if not whole:
        raise ForgettingError(f"{path} has been changed: it has not the sha256 {str(claimed)[:12]}")
    if content.get("format") != FORMAT:
        raise ForgettingError(f"{path} has format {content.get('format')!r}, this streamcl reads {FORMAT}")
    return dict(content)


def read_chain(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every receipt of a run in the order of the chain. Raises ForgettingError at a broken link."""
    paths = sorted((folder / RECEIPTS).glob("*.json")) if (folder / RECEIPTS).is_dir() else []
    chain = sorted(((path, read_receipt(path)) for path in paths), key=lambda each: each[1]["number"])
    previous = None
    for number, (path, content) in enumerate(chain, start=1):
        if content["number"] != number:
            raise ForgettingError(f"receipt number {number} is missing before {path.name}")
        if content["previous"] != previous:
            raise ForgettingError(f"{path.name} is not chained to the receipt before it")
        previous = hashlib.sha256(path.read_bytes()).hexdigest()
    return chain


def canonical(content: Mapping[str, Any]) -> bytes:
    """The one way to write an object: sorted keys, no spaces, ASCII, no NaN, a line end."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()
