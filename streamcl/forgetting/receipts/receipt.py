"""Receipts: what was done about a request, place by place; canonical JSON, each chained to the one before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl import __version__
from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.page import write_page
from streamcl.storage import files, hash_chain
from streamcl.storage.files import Disk

RECEIPTS, AUDITS = "receipts", "audits"
"""The folders' names in a run directory."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def receipt_path(folder: Path, request: str, attempt: int = 1) -> Path:
    """Where a request's receipt is. An id that is no plain file name is replaced by its sha256.

    A request that failed and was tried again has one for each attempt, <id>~2.json for the second.
    """
    name = file_name(request)
    return folder / RECEIPTS / (f"{name}.json" if attempt == 1 else f"{name}~{attempt}.json")


def newest_receipt(folder: Path, request: str) -> Path:
    """That of a request's last attempt, where there is any."""
    return receipt_path(folder, request, max(1, attempts(folder, request)))


def file_name(request: str) -> str:
    """The name of a request's files, without an ending."""
    if PLAIN.fullmatch(request):
        return request
    return hashlib.sha256(request.encode(errors="surrogatepass")).hexdigest()


def attempts(folder: Path, request: str) -> int:
    """How many receipts a request has: of all its attempts but the last each says that it failed."""
    number = 0
    while receipt_path(folder, request, number + 1).exists():
        number += 1
    return number


def write_receipt(folder: Path, request: str, content: Mapping[str, Any], *, disk: Disk = files.DISK) -> Path:
    """Chain a receipt to the newest one and write it whole, its page first; one that is there stays.

    It names the newest audit there is, so that audits cannot be taken away unseen.
    """
    path = receipt_path(folder, request, content.get("attempt", 1))
    if path.exists():
        return path
    files.make_folder(path.parent, disk=disk)
    content = {
        **content,
        "streamcl": __version__,
        "verify": f"streamcl verify {RECEIPTS}/{path.name}",
        "audits": _newest_audit(folder),
    }
    body = hash_chain.seal(content, read_chain(folder))
    write_page(path, body, disk=disk)
    hash_chain.write(path, body, disk=disk)
    return path


def _newest_audit(folder: Path) -> str | None:
    """Its hash; damaged audits are said to be so and keep no receipt from being written."""
    try:
        audits = read_audits(folder)
    except ForgettingError:
        return "damaged"
    return hash_chain.sha256_of(audits[-1][0]) if audits else None


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt whose every byte is as it was written. Raises ForgettingError, saying what is wrong."""
    return hash_chain.read(path, "receipt")


def read_chain(folder: Path) -> hash_chain.Chain:
    """Every receipt of a run in the order of the chain. Raises ForgettingError at a broken link."""
    return hash_chain.read_all(folder / RECEIPTS, "receipt")


def read_audits(folder: Path) -> hash_chain.Chain:
    """Every saved audit of a run in the order of its chain. Raises ForgettingError at a broken link."""
    return hash_chain.read_all(folder / AUDITS, "audit")
