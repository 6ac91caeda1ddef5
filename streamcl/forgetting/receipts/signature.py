"""Verifies one receipt by itself: who has signed it, that it is unchanged, and what it states."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.storage.signed_link import verify_link
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
    link = verify_link(path, "receipt", keys)
    return SignedReceipt(Receipt.from_json(link.body), link.key)


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
