"""Chains of canonical JSON files, each with its own hash and that of the file before it."""

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

LINK_FORMAT = 1
LINK_SIZE_LIMIT = 64 << 20  # bytes; a receipt with every hash of ten thousand ids has under one


def write_link(path: Path, body: Mapping[str, Any], *, disk: Disk = files.DISK) -> None:
    """Write the body of a link with its hash, atomically."""
    files.atomic_write(path, _line({**body, "sha256": _digest(body)}), disk=disk)


def read_link(path: Path, noun: str) -> dict[str, Any]:
    """Return the body of a link, verified byte by byte. Raise ForgettingError, which names the fault."""
    try:
        data = path.read_bytes() if path.stat().st_size <= LINK_SIZE_LIMIT else b""
        content = json.loads(data)
        claimed = content.pop("sha256")
        whole = data == _line({**content, "sha256": claimed}) and claimed == _digest(content)
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ForgettingError(f"{path} is not a valid {noun}: {error!r:.200}") from error
    if not whole:
        raise ForgettingError(f"{path} has been changed: its sha256 is not {str(claimed)[:12]}")
    if (found := content.get("format")) != LINK_FORMAT:
        raise ForgettingError(f"{path} has format {found!r}, this streamcl reads {LINK_FORMAT}")
    return dict(content)


class ChainHead:
    """The newest link of the chain in a folder; each link is read once."""

    def __init__(self, folder: Path, noun: str) -> None:
        self._folder, self._noun = folder, noun
        self._seen: set[str] = set()
        self.number = 0
        self.sha256: str | None = None

    def advance(self) -> Chain:
        """Read the links that are new since the last call; return them in order.

        Raise ForgettingError at a link that is damaged, missing or not chained to the one before.
        """
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        new = [(path, read_link(path, self._noun)) for path in paths if path.name not in self._seen]
        new.sort(key=lambda each: each[1]["number"])
        for path, content in new:
            if content["number"] != self.number + 1:
                raise ForgettingError(f"{self._noun} number {self.number + 1} is missing before {path.name}")
            if content["previous"] != self.sha256:
                raise ForgettingError(f"{path.name} is not chained to the {self._noun} before it")
            self._seen.add(path.name)
            self.number, self.sha256 = content["number"], sha256_of(path)
        return new

    def next_link(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content as the next link, without its own hash. Raise as `advance` does."""
        self.advance()
        return {**content, "format": LINK_FORMAT, "number": self.number + 1, "previous": self.sha256}


def read_links(folder: Path, noun: str) -> Chain:
    """Return every link of a folder in the order of the chain. Raise ForgettingError at a broken one."""
    return ChainHead(folder, noun).advance()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a link's file: canonical JSON and a line end, both of which its hash covers."""
    return canonical_json(content) + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(content)).hexdigest()
