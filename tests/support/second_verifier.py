"""A second verifier of receipts, written from docs/receipts.md alone; it shares no code with streamcl."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

RECEIPT = "application/vnd.streamcl.receipt+json"
HEAD = "application/vnd.streamcl.receipt-head+json"


class Refused(Exception):
    """The file is not good; names the rule."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise Refused(rule)


def canonical(data: bytes) -> Any:
    try:
        value = json.loads(data)
        need(rfc8785.dumps(value) == data, "canonical JSON")
    except (ValueError, RecursionError) as error:
        raise Refused("canonical JSON") from error
    return value


def from_base64(text: Any) -> bytes:
    need(isinstance(text, str), "base64")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused("base64") from error
    need(base64.b64encode(data).decode() == text, "base64")
    return data


def read_keys(data: bytes) -> dict[str, dict[str, Any]]:
    keys = {}
    for jwk in json.loads(data)["keys"]:
        named = rfc8785.dumps({name: jwk[name] for name in ("crv", "kty", "x")})
        kid = base64.urlsafe_b64encode(hashlib.sha256(named).digest()).decode().rstrip("=")
        need((jwk["kty"], jwk["crv"], jwk["kid"]) == ("OKP", "Ed25519", kid), "public keys")
        keys[kid] = jwk
    return keys


def open_envelope(data: bytes, kind: str, keys: dict[str, dict[str, Any]]) -> tuple[bytes, dict[str, Any]]:
    envelope = canonical(data.removesuffix(b"\n"))
    need(data.endswith(b"\n"), "one line feed")
    need(isinstance(envelope, dict) and set(envelope) == {"payload", "payloadType", "signatures"}, "members")
    signatures = envelope["signatures"]
    need(isinstance(signatures, list) and len(signatures) == 1, "one signature")
    need(isinstance(signatures[0], dict) and set(signatures[0]) == {"keyid", "sig"}, "signature")
    need(envelope["payloadType"] == kind, "type")
    jwk, payload = keys.get(str(signatures[0]["keyid"])), from_base64(envelope["payload"])
    need(jwk is not None, "a known key")
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))
    try:
        key.verify(from_base64(signatures[0]["sig"]), signed)
    except Exception as error:
        raise Refused("signature") from error
    return payload, jwk


def verify_receipt(data: bytes, keys: dict[str, dict[str, Any]]) -> dict[str, Any]:
    payload, jwk = open_envelope(data, RECEIPT, keys)
    receipt = canonical(payload)
    need(isinstance(receipt, dict) and receipt.get("format") == 1, "format")
    number, previous, completed = map(receipt.get, ("number", "previous", "completed"))
    need(type(number) is int and number >= 1, "number")
    need(isinstance(previous, str) or (previous is None and number == 1), "previous")
    rest = {name: value for name, value in receipt.items() if name != "sha256"}
    need(receipt.get("sha256") == hashlib.sha256(rfc8785.dumps(rest)).hexdigest(), "sha256")
    need(receipt.get("signed_by") == jwk["kid"], "signed_by")
    need(type(completed) in {int, float}, "completed")
    need(jwk.get("nbf", completed) <= completed <= jwk.get("exp", completed), "validity")
    return receipt


def verify_chain(envelopes: list[bytes], head: bytes, keys: dict[str, dict[str, Any]]) -> int:
    found = sorted((verify_receipt(data, keys)["number"], data) for data in envelopes)
    previous, seen = None, set()
    for place, (number, data) in enumerate(found, start=1):
        receipt = json.loads(payload := open_envelope(data, RECEIPT, keys)[0])
        need(number == place and receipt["previous"] == previous, "chain")
        need((receipt["request"], receipt["attempt"]) not in seen, "one receipt an attempt")
        seen.add((receipt["request"], receipt["attempt"]))
        previous = hashlib.sha256(payload).hexdigest()
    expected = {"format": 1, "number": len(found), "sha256": previous}
    need(open_envelope(head, HEAD, keys)[0] == rfc8785.dumps(expected), "head")
    return len(found)
