"""Verifies the receipts and audits of a run as a whole: signatures, chains, and that none is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamcl.errors import ForgettingError
from streamcl.forgetting.ledger.ledger import LedgerEntry
from streamcl.forgetting.receipts.archive import AUDITS, RECEIPTS, read_audits, receipt_path
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.requests.status import ENDED
from streamcl.storage import hash_chain
from streamcl.storage.signed_link import verify_head, verify_link_key
from streamcl.storage.signing import PublicKeys


@dataclass(frozen=True)
class VerifiedChain:
    """The receipts and audits of a run, verified as a whole.

    receipts: in their order, by the names of their files. hashes: the sha256 of each file. last: the receipt
    of each request's last attempt.
    """

    receipts: Mapping[str, Receipt]
    hashes: Mapping[str, str]
    last: Mapping[str, Receipt]
    audits: hash_chain.Chain


def verify_chain(folder: Path, entries: Sequence[LedgerEntry], keys: PublicKeys) -> VerifiedChain:
    """Return every receipt and audit of a run, verified as a whole.

    Each is signed as it says and chained to the one before, and no audit that it names is missing; every
    request that has ended by the ledger has the receipt of its end; and the newest receipt is the signed head
    of the chain. So none can be removed unnoticed. Raise ForgettingError with what is wrong.
    """
    links = hash_chain.read_links(folder / RECEIPTS, "receipt")
    receipts = {link.path.name: Receipt.from_json(link.body) for link in links}
    for name, receipt in receipts.items():
        if name != receipt_path(folder, receipt.request, receipt.attempt).name:
            raise ForgettingError(f"{name} is the receipt of request {receipt.request!r}")
    last = {receipt.request: receipt for receipt in receipts.values()}
    for entry in entries:
        if entry.status in ENDED and not _has_ended(last.get(entry.id), entry.status):
            raise ForgettingError(
                f"the ledger says that request {entry.id!r} is {entry.status}, and the receipt of that is "
                "missing"
            )
    _verify_signatures(folder / RECEIPTS, links, "receipt", keys)
    audits = read_audits(folder)
    _verify_signatures(folder / AUDITS, audits, "audit", keys)
    _no_audit_missing(receipts, audits)
    return VerifiedChain(receipts, {link.path.name: link.sha256 for link in links}, last, audits)


def _has_ended(last: Receipt | None, status: str) -> bool:
    return last is not None and last.outcome == status


def _verify_signatures(folder: Path, chain: hash_chain.Chain, noun: str, keys: PublicKeys) -> None:
    """Check that no link is unsigned after a signed one, and that the newest is the signed head of the chain.

    The head is written after its link, so between the two it is still the one before, or missing.
    """
    signed = 0
    for link in chain:
        is_signed = verify_link_key(link, noun, keys) is not None
        if signed and not is_signed:
            raise ForgettingError(f"{link.path.name} is not signed, although the {noun} before it is")
        signed += is_signed
    if not signed or (signed == 1 and not (folder / hash_chain.HEAD).exists()):
        return
    newest = chain[-1]
    accepted = (
        hash_chain.head_statement(len(chain), newest.sha256),
        hash_chain.head_statement(len(chain) - 1, newest.body["previous"]),
    )
    if verify_head(folder, noun, keys) not in accepted:
        raise ForgettingError(f"the newest {noun} is not the signed head of the chain: {noun}s are missing")


def _no_audit_missing(receipts: Mapping[str, Receipt], audits: hash_chain.Chain) -> None:
    known = {None, *(audit.sha256 for audit in audits)}
    for name, receipt in receipts.items():
        if receipt.audits not in known:
            raise ForgettingError(f"an audit that {name} refers to is missing, or has been changed")
