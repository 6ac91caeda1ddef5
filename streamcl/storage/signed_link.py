"""Verifies one link of a signed chain: in its envelope, or as a document with its envelope beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.errors import ForgettingError
from streamcl.storage import hash_chain
from streamcl.storage.envelope import SUFFIX, Envelope, envelope_path, read_envelope
from streamcl.storage.signing import PublicKey, PublicKeys

DATES = {"receipt": "completed", "audit": "made"}
"""The field of each kind of document that says when it was signed, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class SignedLink:
    """The body of a link and the key that has signed it; None where it is not signed."""

    body: dict[str, Any]
    key: PublicKey | None


def verify_link(path: Path, noun: str, keys: PublicKeys) -> SignedLink:
    """Return the link in a file once it is verified.

    A link without a signature is accepted only where no key could have signed it: where `keys` is empty, or
    none of them was valid yet. Raise ForgettingError with what is wrong.
    """
    if path.suffix != SUFFIX:
        link = hash_chain.read_link(path, noun)
        return SignedLink(link.body, verify_link_key(link, noun, keys))
    envelope = read_envelope(path)
    body = hash_chain.parse_link(envelope.payload, path, noun)
    return SignedLink(body, _signer(path, body, envelope, noun, keys))


def verify_link_key(link: hash_chain.Link, noun: str, keys: PublicKeys) -> PublicKey | None:
    """Return the key that has signed a link by the envelope beside it, as `verify_link` does."""
    beside = envelope_path(link.path)
    if not beside.is_file():
        _check_unsigned(link, noun, keys)
        return None
    envelope = read_envelope(beside)
    if hashlib.sha256(envelope.payload).hexdigest() != link.sha256:
        raise ForgettingError(f"{beside.name} is the envelope of another document than {link.path.name}")
    return _signer(beside, link.body, envelope, noun, keys)


def verify_head(folder: Path, noun: str, keys: PublicKeys) -> bytes:
    """Return the statement of the signed head of the chain in a folder, once it is verified."""
    path = folder / hash_chain.HEAD
    if not path.exists():
        raise ForgettingError(f"the signed head of the chain of {noun}s is missing")
    envelope = read_envelope(path)
    envelope.verify(keys, hash_chain.payload_type(f"{noun}-head"))
    return envelope.payload


def _signer(
    path: Path, body: Mapping[str, Any], envelope: Envelope, noun: str, keys: PublicKeys
) -> PublicKey:
    """Return the key that has signed an envelope with this body, as the body says."""
    try:
        key = envelope.verify(keys, hash_chain.payload_type(noun))
    except ForgettingError as error:
        raise ForgettingError(f"{path.name}: {error}", hint=error.hint) from error
    if body.get("signed_by") != key.key_id:
        raise ForgettingError(f"{path.name} is signed with another key than the one that it names")
    if not key.was_valid_at(_date(path, body, noun)):
        raise ForgettingError(f"{path.name} is dated outside the time in which its key was valid")
    return key


def _check_unsigned(link: hash_chain.Link, noun: str, keys: PublicKeys) -> None:
    """Raise ForgettingError where a link without an envelope should have one."""
    path, body = link.path, link.body
    if body.get("signed_by") is not None:
        raise ForgettingError(f"{path.name} says that it is signed, and its envelope is missing")
    earliest = min((key.valid_from or 0.0 for key in keys.values()), default=None)
    if earliest is not None and _date(path, body, noun) >= earliest:
        raise ForgettingError(f"{path.name} is not signed, although a key existed at its time")


def _date(path: Path, body: Mapping[str, Any], noun: str) -> float:
    found = body.get(DATES[noun])
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ForgettingError(f"{path.name} is not a valid {noun}: it has no date")
    return found
