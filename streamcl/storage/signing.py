"""Ed25519 keys (RFC 8032) that sign receipts, and JSON Web Key Sets of public keys that verify them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from streamcl.errors import ForgettingError
from streamcl.storage import files

PUBLIC_SIZE_LIMIT = 1 << 20  # bytes; a key has some 200


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of Ed25519.

    raw: its 32 bytes. name: of its holder, in their own words. valid_from, valid_until: seconds since the
    epoch between which it has signed; None where it still does, or where that is unknown.
    """

    raw: bytes
    name: str | None = None
    valid_from: float | None = None
    valid_until: float | None = None

    @property
    def key_id(self) -> str:
        """The thumbprint of RFC 7638, in base64url: it follows from the key alone."""
        members = rfc8785.dumps({"crv": "Ed25519", "kty": "OKP", "x": _base64url(self.raw)})
        return _base64url(hashlib.sha256(members).digest())

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether the holder of the private key has signed the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def was_valid_at(self, moment: float) -> bool:
        """Return whether the key was in use then; seconds since the epoch."""
        began = self.valid_from is None or self.valid_from <= moment
        return began and (self.valid_until is None or moment <= self.valid_until)

    def to_json(self) -> dict[str, Any]:
        """Return the key as a JSON Web Key."""
        jwk: dict[str, Any] = {"kty": "OKP", "crv": "Ed25519", "kid": self.key_id, "x": _base64url(self.raw)}
        known = {"name": self.name, "nbf": self.valid_from, "exp": self.valid_until}
        return jwk | {field: value for field, value in known.items() if value is not None}

    @classmethod
    def from_json(cls, jwk: Mapping[str, Any]) -> Self:
        """Return the key of a JSON Web Key. Raise ValueError where it is none of Ed25519."""
        if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
            raise ValueError("not a key of Ed25519")
        key = cls(_from_base64url(jwk["x"]), jwk.get("name"), jwk.get("nbf"), jwk.get("exp"))
        if len(key.raw) != 32 or jwk.get("kid") != key.key_id:
            raise ValueError("its kid is not the thumbprint of the key")
        if not all(isinstance(each, int | float | None) for each in (key.valid_from, key.valid_until)):
            raise ValueError("nbf and exp are numbers")
        return key


class PublicKeys(dict[str, PublicKey]):
    """Public keys by their ids: a JSON Web Key Set on disk."""

    @classmethod
    def of(cls, keys: Iterable[PublicKey]) -> PublicKeys:
        """Return a set of keys."""
        return cls((key.key_id, key) for key in keys)

    @classmethod
    def read(cls, path: Path) -> PublicKeys:
        """Return the keys in a file. Raise ForgettingError where it is no JSON Web Key Set of Ed25519."""
        try:
            data = files.read_limited(path, PUBLIC_SIZE_LIMIT)
            return cls.of(PublicKey.from_json(each) for each in json.loads(data)["keys"])
        except OSError as error:
            raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ForgettingError(f"{path} holds no public keys: {error!r:.200}") from error

    def to_bytes(self) -> bytes:
        """Return the content of the file, the oldest key first."""
        keys = sorted(self.values(), key=lambda key: (key.valid_from or 0.0, key.key_id))
        return json.dumps({"keys": [key.to_json() for key in keys]}, indent=2).encode() + b"\n"


def signing_date(key: SigningKey | None, now: float) -> float:
    """Return the date of a signature: now, or the key's beginning where a clock was set back."""
    valid_from = None if key is None else key.public.valid_from
    return now if valid_from is None else max(now, valid_from)


class SigningKey:
    """A private key of Ed25519, with its public key."""

    def __init__(self, private: Ed25519PrivateKey, public: PublicKey | None = None) -> None:
        self._private = private
        self.public = public or PublicKey(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, *, name: str | None = None, valid_from: float | None = None) -> SigningKey:
        """Return a new key."""
        new = cls(Ed25519PrivateKey.generate())
        return cls(new._private, replace(new.public, name=name, valid_from=valid_from))

    @classmethod
    def from_pem(cls, data: bytes, published: PublicKeys) -> SigningKey:
        """Return the key of a PEM file (PKCS #8), with its name and validity as published.

        Raise ValueError where the file holds no key of Ed25519, or one that is not published.
        """
        private = serialization.load_pem_private_key(data, password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("not a private key of Ed25519")  # noqa: TRY004 - of the file's content
        key = cls(private)
        if key.public.key_id not in published:
            raise ValueError("its public key is not among the published ones")
        return cls(private, published[key.public.key_id])

    def to_pem(self) -> bytes:
        """Return the key as a PEM file (PKCS #8), not encrypted."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, 64 bytes."""
        return self._private.sign(message)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    data = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    if _base64url(data) != text:
        raise ValueError("not in base64url")
    return data
