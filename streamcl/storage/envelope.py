"""DSSE envelopes: a document and who signed it, in one file that can be verified by itself (DSSE v1.0.2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from streamcl.errors import ForgettingError
from streamcl.storage import files
from streamcl.storage.signing import PublicKey, PublicKeys, SigningKey

SUFFIX = ".dsse"
"""The ending of an envelope's file."""

ENVELOPE_SIZE_LIMIT = 128 << 20  # bytes; base64 of the largest receipt, and the rest


@dataclass(frozen=True, slots=True)
class Envelope:
    """A document with its type, the id of the key that signed it, and the signature."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the envelope's file: one form for one content, so that no byte of it can be changed."""
        signature = {"keyid": self.key_id, "sig": _base64(self.signature)}
        members: dict[str, Any] = {
            "payload": _base64(self.payload),
            "payloadType": self.payload_type,
            "signatures": [signature],
        }
        return rfc8785.dumps(members) + b"\n"

    def verify(self, keys: PublicKeys, payload_type: str) -> PublicKey:
        """Return the key that signed it. Raise ForgettingError where none of `keys` did, or another type."""
        if self.payload_type != payload_type:
            raise ForgettingError(f"it is signed as {self.payload_type!r:.80}, not as {payload_type}")
        if (key := keys.get(self.key_id)) is None:
            raise ForgettingError(
                f"it is signed with the key {self.key_id:.60}, none of the {len(keys)} known public keys",
                hint="obtain the public key from the operator, and name its file: --keys FILE",
            )
        if not key.verifies(self.signature, pre_authentication(payload_type, self.payload)):
            raise ForgettingError(f"its signature is not one of the key {self.key_id}: it has been changed")
        return key


def sign(payload: bytes, payload_type: str, key: SigningKey) -> Envelope:
    """Return a document in an envelope that this key has signed."""
    signature = key.sign(pre_authentication(payload_type, payload))
    return Envelope(payload_type, payload, key.public.key_id, signature)


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: type and document, each after its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_envelope(path: Path) -> Envelope:
    """Return the envelope in a file, not verified. Raise ForgettingError where its form is any other."""
    try:
        data = files.read_limited(path, ENVELOPE_SIZE_LIMIT)
        envelope = _parsed(json.loads(data))
        whole = envelope.to_bytes() == data
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ForgettingError(f"{path} is not a valid envelope: {error!r:.200}") from error
    if not whole:
        raise ForgettingError(f"{path} has been changed: it is not in canonical form")
    return envelope


def envelope_path(document: Path) -> Path:
    """Return where the envelope of a document is: beside it."""
    return document.with_suffix(SUFFIX)


def _parsed(content: Mapping[str, Any]) -> Envelope:
    (signature,) = content["signatures"]
    return Envelope(
        str(content["payloadType"]),
        base64.b64decode(content["payload"], validate=True),
        str(signature["keyid"]),
        base64.b64decode(signature["sig"], validate=True),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
