"""Verifies receipts against what can be derived again: signatures, the chain, and the files of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.errors import CheckpointError, ConfigError, ForgettingError
from streamcl.forgetting.ledger import LEDGER, Ledger, LedgerEntry
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.receipts.archive import (
    AUDITS,
    RECEIPTS,
    attempts,
    read_audits,
    read_receipts,
    receipt_path,
)
from streamcl.forgetting.receipts.receipt import LOCATIONS, Receipt
from streamcl.forgetting.receipts.signature import NOT_PROVEN, explain, verify_signature
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS
from streamcl.sinks.jsonl import logged_ids
from streamcl.storage import hash_chain
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import MANIFEST, CorruptCheckpoint, verify_checkpoint
from streamcl.storage.plain_state import state_hash
from streamcl.storage.signed_link import verify_head, verify_link
from streamcl.storage.signing import PublicKeys

ENDED_STATUSES = frozenset({"done", "refused", "failed"})


def verify_receipt(path: Path, keys: PublicKeys | None = None) -> list[str]:
    """Return a sentence for each check that passed. Raise ForgettingError at the first fault.

    keys: the public keys to verify signatures with; None means that there are none.
    """
    return ReceiptVerifier(keys or PublicKeys()).verify(path)


class ReceiptVerifier:
    """Verifies receipts; the records of a run are read once for all the receipts in it."""

    def __init__(self, keys: PublicKeys) -> None:
        self._keys = keys
        self._runs: dict[Path, RunRecords] = {}

    def verify(self, path: Path) -> list[str]:
        """Return a sentence for each check that passed. Raise ForgettingError at the first fault.

        Of a receipt outside its run the signature alone can be checked. Within it so are the chain of
        receipts, the ledger, the logs and the lineage; and the model's hash is derived again from the
        checkpoint that the erasure made, as long as that exists.
        """
        signed = verify_signature(path, self._keys)
        found = explain(signed)
        folder = path.resolve().parent.parent
        if not (folder / LEDGER).is_file():
            if signed.key is None and self._keys:
                raise ForgettingError(
                    f"{path.name} is not signed, so nothing can be verified outside its run"
                )
            return [*found, "it lies outside its run, so nothing else was checked", NOT_PROVEN]
        try:
            if folder not in self._runs:
                self._runs[folder] = read_records(folder, self._keys)
        except ConfigError as error:  # a stranger who was given the run has no secret of its hashes
            if signed.key is None:
                raise
            return [*found, f"its run was not checked: {error}", NOT_PROVEN]
        return [*found, *self._runs[folder].verify(path.with_suffix(".json")), NOT_PROVEN]


@dataclass(frozen=True)
class RunRecords:
    """The records of a run that its receipts are checked against, read once.

    receipts: by their file names, in the order of the chain. status: of each request, by the ledger. left:
    fingerprints of erased samples that logs or lineage still hold, each with the place and its offset, None
    where a record has none. counts: the ids in each place. audits: their hashes and contents, by file.
    """

    folder: Path
    receipts: Mapping[str, Receipt]
    status: Mapping[str, str]
    left: Mapping[str, Sequence[tuple[str, int | None]]]
    counts: Mapping[str, int]
    audits: hash_chain.Chain

    def verify(self, path: Path) -> Iterator[str]:
        """Yield a sentence for each check of a receipt that passed. Raise ForgettingError at a fault."""
        if (receipt := self.receipts.get(path.name)) is None:
            raise ForgettingError(f"{path.name} is not in the chain of the run's receipts")
        yield f"it is number {receipt.number} of an unbroken chain of {len(self.receipts)}"
        yield _ledger_agrees(receipt, self._last(receipt), self.status.get(receipt.request, "nothing of it"))
        if receipt.outcome == "done":
            yield _every_location(receipt)
            yield from self._nothing_left(receipt)
            yield from self._audits(path, receipt)

    def _last(self, receipt: Receipt) -> Receipt:
        """Return the receipt of the request's last attempt."""
        number = attempts(self.folder, receipt.request)
        return self.receipts[receipt_path(self.folder, receipt.request, number).name]

    def _nothing_left(self, receipt: Receipt) -> Iterator[str]:
        for name in receipt.scope.ids:
            for place, offset in self.left.get(name, ()):
                may_return = receipt.on_return == "learn" and (offset is None or offset >= receipt.offset)
                if not may_return:
                    raise ForgettingError(f"{place} still hold an erased sample, at offset {offset}")
        for place, count in self.counts.items():
            yield f"none of the {count} ids in {place} is one of the {len(receipt.scope.ids)} erased"
        if (self.folder / STATISTICS).is_file():
            yield _no_statistics(self.folder, receipt)
        yield _no_older_checkpoint(self.folder, receipt)

    def _audits(self, path: Path, receipt: Receipt) -> Iterator[str]:
        """Check that the audits of a receipt are of no other."""
        own = [content for _, content in self.audits if content["request"] == receipt.request]
        digest = hash_chain.sha256_of(path)
        for content in own:
            if content["receipt"] != digest:
                raise ForgettingError(f"audit number {content['number']} is the audit of another receipt")
            place = f"number {content['number']} of {len(self.audits)}"
            yield f"an audit belongs to it, {place}: {_verdict(content)}"


def read_records(folder: Path, keys: PublicKeys) -> RunRecords:
    """Return the records of a run, once its chain is verified (see `verify_chain`)."""
    with Ledger(folder / LEDGER) as ledger:
        entries = ledger.entries()
        chain = verify_chain(folder, entries, keys)
        erased = {name for _, receipt in chain for name in receipt.scope.ids}
        left: dict[str, list[tuple[str, int | None]]] = {}
        counts = {}
        for place, ids in (("the logs", logged_ids(folder)), ("the lineage", _lineage_ids(folder))):
            counts[place] = 0
            for offset, name in ids:
                counts[place] += 1
                if (digest := ledger.fingerprint("sample", name)) in erased:
                    left.setdefault(digest, []).append((place, offset))
    receipts = {path.name: receipt for path, receipt in chain}
    status = {entry.id: entry.status for entry in entries}
    return RunRecords(folder, receipts, status, left, counts, read_audits(folder))


def verify_chain(
    folder: Path, entries: Sequence[LedgerEntry], keys: PublicKeys
) -> list[tuple[Path, Receipt]]:
    """Return every receipt of a run in order, verified as a whole.

    Each is signed as it says and chained to the one before, and no audit that it names is missing; every
    request that has ended by the ledger has the receipt of its end; and the newest receipt is the signed head
    of the chain. So none can be removed unnoticed. Raise ForgettingError with what is wrong.
    """
    chain = read_receipts(folder)
    for path, receipt in chain:
        if path != receipt_path(folder, receipt.request, receipt.attempt):
            raise ForgettingError(f"{path.name} is the receipt of request {receipt.request!r}")
    ended = {entry.id: entry.status for entry in entries if entry.status in ENDED_STATUSES}
    last = {receipt.request: receipt.outcome for _, receipt in chain}
    for request, status in ended.items():
        if last.get(request) != status:
            raise ForgettingError(
                f"the ledger says that request {request!r} is {status}, and the receipt of that is missing"
            )
    _verify_signatures(folder / RECEIPTS, "receipt", keys)
    _verify_signatures(folder / AUDITS, "audit", keys)
    _no_audit_missing(folder, chain)
    return chain


def _verify_signatures(folder: Path, noun: str, keys: PublicKeys) -> None:
    """Check that no link is unsigned after a signed one, and that the newest is the signed head of the chain.

    The head is written after its link, so between the two it is still the one before, or missing.
    """
    chain, signed = hash_chain.read_links(folder, noun), 0
    for path, _ in chain:
        is_signed = verify_link(path, noun, keys).key is not None
        if signed and not is_signed:
            raise ForgettingError(f"{path.name} is not signed, although the {noun} before it is")
        signed += is_signed
    if not signed or (signed == 1 and not (folder / hash_chain.HEAD).exists()):
        return
    path, newest = chain[-1]
    accepted = (
        hash_chain.head_statement(len(chain), hash_chain.sha256_of(path)),
        hash_chain.head_statement(len(chain) - 1, newest["previous"]),
    )
    if verify_head(folder, noun, keys) not in accepted:
        raise ForgettingError(f"the newest {noun} is not the signed head of the chain: {noun}s are missing")


def _no_audit_missing(folder: Path, chain: Sequence[tuple[Path, Receipt]]) -> None:
    known = {hash_chain.sha256_of(each) for each, _ in read_audits(folder)}
    for path, receipt in chain:
        if receipt.audits not in {None, *known}:
            raise ForgettingError(f"an audit that {path.name} refers to is missing, or has been changed")


def _every_location(receipt: Receipt) -> str:
    """Check that the receipt accounts for every location where the data could be."""
    named = {location.name for location in receipt.locations}
    if missing := sorted(LOCATIONS - named):
        raise ForgettingError(f"it does not mention the {missing[0]}")
    return f"it accounts for {len(named)} locations by name"


def _verdict(content: Mapping[str, Any]) -> str:
    audit = content["audit"]
    return f"{audit['verdict']}, compared with {audit['models']['references']} retrained models"


def _ledger_agrees(receipt: Receipt, last: Receipt, status: str) -> str:
    """Check that the ledger agrees with the receipt, unless a request that had failed was retried."""
    if receipt.outcome == "failed":
        if last.number != receipt.number:
            return f"it was tried again: the receipt of the last attempt is number {last.number}"
        if status in {"received", "started"}:
            return "it has been requested again, and is not carried out yet"
    if status != receipt.outcome:
        raise ForgettingError(f"the ledger says {status}, the receipt says {receipt.outcome}")
    return f"the ledger says {status} too"


def _no_statistics(folder: Path, receipt: Receipt) -> str:
    """Check that no sums are stored of a class or subject that was erased, unless it may have come again."""
    with closing(BlockFile(folder / STATISTICS)) as file:
        cohorts = {cohort.hex() for cohort in file.cohorts()}
    if receipt.on_return == "drop" and cohorts & set(receipt.scope.cohorts):
        raise ForgettingError("the stored statistics still hold sums of what was erased")
    return f"none of the {len(cohorts)} stored statistics is of what was erased"


def _lineage_ids(folder: Path) -> Iterator[tuple[int | None, str]]:
    if not (folder / LINEAGE).is_file():
        return
    with closing(Lineage(folder / LINEAGE)) as lineage:
        yield from lineage.ids()


def _no_older_checkpoint(folder: Path, receipt: Receipt) -> str:
    """Check that no checkpoint is from before the erasure, and that the one made then is unchanged."""
    made = receipt.checkpoint
    if made is None:
        return "the run keeps no checkpoints"
    paths = list_checkpoints(folder / "checkpoints")
    if older := [path.name for path in paths if path.name < made.name]:
        raise ForgettingError(f"{older[0]} is from before the erasure")
    for path in paths:
        if path.name == made.name:
            digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
            if digest != made.manifest_sha256:
                raise ForgettingError(f"{path.name} is not the checkpoint that the erasure made")
            _same_learner(path, receipt)
            return (
                f"{path.name} is the checkpoint that the erasure made, and the oldest there is; "
                "its model has the hash that the receipt names"
            )
    return f"no checkpoint is older than {made.name}"


def _same_learner(path: Path, receipt: Receipt) -> None:
    """Check that the model in the checkpoint is the one that the erasure left."""
    try:
        learner = verify_checkpoint(path).state["learner"]
    except (CorruptCheckpoint, CheckpointError) as error:
        raise ForgettingError(f"{path.name} cannot be read: {error}") from error
    if state_hash(learner) != receipt.learner_after:
        raise ForgettingError(f"the model in {path.name} is not the one that the receipt names")
