"""Chains of documents in canonical JSON (RFC 8785), each with the hash of the one before, and signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import rfc8785

from streamcl.errors import ForgettingError
from streamcl.storage import envelope, files
from streamcl.storage.files import Disk
from streamcl.storage.signing import SigningKey

LINK_FORMAT = 1
LINK_SIZE_LIMIT = 64 << 20  # bytes; a receipt with every hash of ten thousand ids has under one
HEAD = f"_head{envelope.SUFFIX}"
"""The file with the number and the hash of the newest link, signed. No link has a name that begins so."""


def payload_type(noun: str) -> str:
    """Return the media type under which a document is signed."""
    return f"application/vnd.streamcl.{noun}+json"


@dataclass(frozen=True, slots=True)
class Link:
    """A link that was read and verified byte by byte. sha256: of the bytes of its file, in hexadecimal."""

    path: Path
    body: dict[str, Any]
    sha256: str


Chain: TypeAlias = list[Link]


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link that is not written yet. key: that signs it; None leaves it without a signature."""

    noun: str
    body: Mapping[str, Any]
    key: SigningKey | None = None

    @property
    def data(self) -> bytes:
        """The bytes of its file, which are what is signed."""
        return _encoded(self.body)

    def write(self, path: Path, *, disk: Disk = files.DISK) -> None:
        """Write it atomically, the envelope with its signature first: a link that exists is complete."""
        if self.key is not None:
            signed = envelope.sign(self.data, payload_type(self.noun), self.key)
            files.atomic_write(envelope.envelope_path(path), signed.to_bytes(), disk=disk)
        files.atomic_write(path, self.data, disk=disk)


def read_link(path: Path, noun: str) -> Link:
    """Return the link in a file. Raise ForgettingError, which names the fault, where it is not as written."""
    try:
        data = files.read_limited(path, LINK_SIZE_LIMIT)
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
    return Link(path, parse_link(data, path, noun), hashlib.sha256(data).hexdigest())


def parse_link(data: bytes, path: Path, noun: str) -> dict[str, Any]:
    """Return the body in the bytes of a link, which `path` names in errors. Raise ForgettingError."""
    try:
        content = json.loads(data)
        claimed = content.pop("sha256")
        whole = data == _encoded(content) and claimed == _digest(content)
        number, previous = content["number"], content["previous"]
        placed = type(number) is int and number >= 1 and (isinstance(previous, str) or number == 1)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ForgettingError(f"{path} is not a valid {noun}: {error!r:.200}") from error
    if not whole:
        raise ForgettingError(f"{path} has been changed: its sha256 is not {str(claimed)[:12]}")
    if not placed:
        raise ForgettingError(f"{path} is not a valid {noun}: it has no place in a chain")
    if (found := content.get("format")) != LINK_FORMAT:
        raise ForgettingError(f"{path} has format {found!r}, this streamcl reads {LINK_FORMAT}")
    return dict(content)


class ChainPlace(NamedTuple):
    """The newest link of a chain: the name of its file, its number and the sha256 of its bytes."""

    name: str
    number: int
    sha256: str


class ChainHead:
    """The newest link of the chain in a folder; each link is read once.

    What this object writes is not read again. What others write is found by `advance`, before the first link
    that is written here, and after one that could not be.
    """

    def __init__(self, folder: Path, noun: str) -> None:
        self._folder, self._noun = folder, noun
        self._seen: set[str] = set()
        self._is_current = False
        self._name, self.number = "", 0
        self.sha256: str | None = None

    @property
    def place(self) -> ChainPlace | None:
        """The newest link that is known; None where there is none."""
        return None if self.sha256 is None else ChainPlace(self._name, self.number, self.sha256)

    def resume(self, place: ChainPlace) -> None:
        """Begin at a link without reading those before it, where it is there and no other has come."""
        names = {path.name for path in self._folder.glob("*.json")} if self._folder.is_dir() else set()
        if len(names) != place.number or place.name not in names:
            return
        with suppress(ForgettingError):  # damage is reported by `advance`
            if read_link(self._folder / place.name, self._noun).sha256 == place.sha256:
                self._seen = names
                self._take(*place)

    def advance(self) -> Chain:
        """Read the links that are new since the last call; return them in order.

        Raise ForgettingError at a link that is damaged, missing or not chained to the one before.
        """
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        new = [read_link(path, self._noun) for path in paths if path.name not in self._seen]
        new.sort(key=lambda each: int(each.body["number"]))
        for link in new:
            name = link.path.name
            if link.body["number"] != self.number + 1:
                raise ForgettingError(f"{self._noun} number {self.number + 1} is missing before {name}")
            if link.body["previous"] != self.sha256:
                raise ForgettingError(f"{name} is not chained to the {self._noun} before it")
            self._take(name, link.body["number"], link.sha256)
        self._is_current = True
        return new

    def next_link(self, content: Mapping[str, Any], key: SigningKey | None = None) -> NewLink:
        """Return the content as the next link, to be signed by `key`. Raise as `advance` does."""
        self._be_current()
        place = {"format": LINK_FORMAT, "number": self.number + 1, "previous": self.sha256}
        signer = None if key is None else key.public.key_id
        return NewLink(self._noun, {**content, **place, "signed_by": signer}, key)

    def write(self, link: NewLink, path: Path, *, disk: Disk = files.DISK) -> None:
        """Write the next link atomically, the envelope with its signature first, so that it is complete."""
        self._is_current = False  # unless it is written
        link.write(path, disk=disk)
        self._take(path.name, link.body["number"], hashlib.sha256(link.data).hexdigest())
        self._is_current = True

    def sign(self, key: SigningKey, *, disk: Disk = files.DISK) -> None:
        """Sign the number and the hash of the newest link, so that it cannot be removed unnoticed."""
        self._be_current()
        path = self._folder / HEAD
        statement = head_statement(self.number, self.sha256)
        signed = envelope.sign(statement, payload_type(f"{self._noun}-head"), key).to_bytes()
        if not path.exists() or path.read_bytes() != signed:
            files.atomic_write(path, signed, disk=disk)

    def _be_current(self) -> None:
        if not self._is_current:
            self.advance()

    def _take(self, name: str, number: int, sha256: str) -> None:
        self._seen.add(name)
        self._name, self.number, self.sha256 = name, number, sha256


def head_statement(number: int, sha256: str | None) -> bytes:
    """Return the document that is signed as the head of a chain with so many links."""
    return rfc8785.dumps({"format": LINK_FORMAT, "number": number, "sha256": sha256})


def read_links(folder: Path, noun: str) -> Chain:
    """Return every link of a folder in the order of the chain. Raise ForgettingError at a broken one."""
    return ChainHead(folder, noun).advance()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return the bytes of a link's file: canonical JSON with the hash of the rest."""
    return rfc8785.dumps({**body, "sha256": _digest(body)})


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(rfc8785.dumps(dict(body))).hexdigest()
