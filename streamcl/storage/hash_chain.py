"""Chains of JSON files that show a changed byte: canonical, each with the hash of the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.errors import ForgettingError
from streamcl.storage import files
from streamcl.storage.canonical_json import canonical_json
from streamcl.storage.files import Disk

Chain: TypeAlias = list[tuple[Path, dict[str, Any]]]

FORMAT = 1
LIMIT = 64 << 20  # bytes; a receipt with every hash of ten thousand ids has under one


def seal(content: Mapping[str, Any], chain: Chain) -> dict[str, Any]:
    """The content as the next link of a chain; all but its own hash."""
    previous = sha256_of(chain[-1][0]) if chain else None
    return {**content, "format": FORMAT, "number": len(chain) + 1, "previous": previous}


def write(path: Path, body: Mapping[str, Any], *, disk: Disk = files.DISK) -> None:
    """Write a sealed link whole."""
    files.atomic_write(path, _line({**body, "sha256": _digest(body)}), disk=disk)


def read(path: Path, noun: str) -> dict[str, Any]:
    """A link whose every byte is as it was written. Raises ForgettingError, saying what is wrong."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LIMIT else b""
        content = json.loads(data)
        claimed = content.pop("sha256")
        whole = data == _line({**content, "sha256": claimed}) and claimed == _digest(content)
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ForgettingError(f"{path} is no {noun}: {error!r:.200}") from error
    if not whole:
        raise ForgettingError(f"{path} has been changed: it has not the sha256 {str(claimed)[:12]}")
    if content.get("format") != FORMAT:
        raise ForgettingError(f"{path} has format {content.get('format')!r}, this streamcl reads {FORMAT}")
    return dict(content)


def read_all(folder: Path, noun: str) -> Chain:
    """Every link of a folder in the order of the chain. Raises ForgettingError at a broken one."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    chain = sorted(((path, read(path, noun)) for path in paths), key=lambda each: each[1]["number"])
    previous = None
    for number, (path, content) in enumerate(chain, start=1):
        if content["number"] != number:
            raise ForgettingError(f"{noun} number {number} is missing before {path.name}")
        if content["previous"] != previous:
            raise ForgettingError(f"{path.name} is not chained to the {noun} before it")
        previous = sha256_of(path)
    return chain


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a link's file: canonical JSON and a line end, both of which its hash covers."""
    return canonical_json(content) + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(content)).hexdigest()
