"""Verifies one receipt by itself: who has signed it, that it is unchanged, and what it states."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.storage import hash_chain
from streamcl.storage.envelope import SUFFIX, Envelope, envelope_path, read_envelope
from streamcl.storage.signing import PublicKey, PublicKeys

NOT_PROVEN = (
    "a receipt cannot prove that no copy exists outside the run directory, that the signer's clock was "
    "right, or that the signer has told the truth"
)
PURPOSES = {
    "samples": "to forget single samples",
    "subject": "to forget a person or subject",
    "class": "to forget a class",
    "unreadable": "that cannot be read",
}


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt and the key that has signed it; None where it is not signed."""

    receipt: Receipt
    key: PublicKey | None


def verify_signature(path: Path, keys: PublicKeys) -> SignedReceipt:
    """Return the receipt in a file, an envelope or a document with its envelope beside it, once verified.

    A receipt without a signature is accepted only where no key could have signed it: where `keys` is empty,
    or none of them was valid yet. Raise ForgettingError with what is wrong.
    """
    if path.suffix == SUFFIX:
        envelope = read_envelope(path)
        return _signed(path, envelope, _document(path, envelope.payload), keys)
    data = _read(path)
    receipt, beside = _document(path, data), envelope_path(path)
    if not beside.is_file():
        return _unsigned(path, receipt, keys)
    envelope = read_envelope(beside)
    if envelope.payload != data:
        raise ForgettingError(f"{beside.name} is the envelope of another document than {path.name}")
    return _signed(beside, envelope, receipt, keys)


def explain(signed: SignedReceipt) -> list[str]:
    """Return what a verified receipt proves, by whom, and what it states, a sentence each."""
    receipt, key = signed.receipt, signed.key
    if key is None:
        proven = "it is not signed: it proves nothing to anyone who does not trust the run directory"
    else:
        name = "" if key.name is None else f", whose holder calls itself {key.name!r}"
        proven = f"signed with the key {key.key_id}{name}: not a byte has been changed since"
    return [proven, f"it states: {statement(receipt)}"]


def statement(receipt: Receipt) -> str:
    """Return what a receipt states, in one sentence."""
    request = f"request {receipt.request!r} {PURPOSES[receipt.kind]}"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(receipt.completed))
    if receipt.outcome != "done":
        return f"{request} was {_ended(receipt)} on {when}, and nothing was erased: {receipt.reason}"
    late = f", {receipt.late_by:.0f} s late" if receipt.late_by else ""
    return (
        f"{request} was carried out on {when}{late}, before record {receipt.offset} of the stream, "
        f"by {receipt.method}; the guarantee is {receipt.guarantee}"
    )


def _ended(receipt: Receipt) -> str:
    return "refused" if receipt.outcome == "refused" else "tried, and failed,"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.stat().st_size <= hash_chain.LINK_SIZE_LIMIT else b""
    except OSError as error:
        raise ForgettingError(f"{path} cannot be read: {error.strerror}") from error


def _document(path: Path, data: bytes) -> Receipt:
    return Receipt.from_json(hash_chain.parse_link(data, path, "receipt"))


def _signed(path: Path, envelope: Envelope, receipt: Receipt, keys: PublicKeys) -> SignedReceipt:
    try:
        key = envelope.verify(keys, hash_chain.payload_type("receipt"))
    except ForgettingError as error:
        raise ForgettingError(f"{path.name}: {error}", hint=error.hint) from error
    if receipt.signed_by != key.key_id:
        raise ForgettingError(f"{path.name} is signed with another key than the one that it names")
    if not key.was_valid_at(receipt.completed):
        raise ForgettingError(f"{path.name} is dated outside the time in which its key was valid")
    return SignedReceipt(receipt, key)


def _unsigned(path: Path, receipt: Receipt, keys: PublicKeys) -> SignedReceipt:
    if receipt.signed_by is not None:
        raise ForgettingError(f"{path.name} says that it is signed, and its envelope is missing")
    earliest = min((key.valid_from or 0.0 for key in keys.values()), default=None)
    if earliest is not None and receipt.completed >= earliest:
        raise ForgettingError(f"{path.name} is not signed, although a key existed at its time")
    return SignedReceipt(receipt, None)
