"""Verifies receipts against what can be derived again: signatures, the chain, and the files of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from streamcl.errors import CheckpointError, ConfigError, ForgettingError
from streamcl.forgetting.annotations import ANNOTATIONS, annotated_records
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.receipts.receipt import LOCATIONS, Receipt, ledger_identity
from streamcl.forgetting.receipts.signature import NOT_PROVEN, explain, verify_signature
from streamcl.forgetting.receipts.uncovered import copied_ids, uncovered_sentences
from streamcl.forgetting.receipts.verified_chain import VerifiedChain, verify_chain
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS
from streamcl.requests.status import PENDING
from streamcl.sinks.jsonl import logged_ids
from streamcl.storage import hash_chain
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import MANIFEST, CorruptCheckpoint, verify_checkpoint
from streamcl.storage.manifest_mac import ManifestMac
from streamcl.storage.plain_state import state_hash
from streamcl.storage.run_files import unknown_files
from streamcl.storage.signing import PublicKeys


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
        checked = self._runs[folder].verify(path.with_suffix(".json"))
        return [*found, *checked, *uncovered_sentences(folder), NOT_PROVEN]


@dataclass(frozen=True)
class RunRecords:
    """The records of a run that its receipts are checked against, each read once for all of them.

    status: of each request, by the ledger. left: fingerprints of erased samples that logs or lineage still
    hold, each with the place and its offset, None where a record has none. counts: the ids in each place.
    """

    folder: Path
    chain: VerifiedChain
    status: Mapping[str, str]
    left: Mapping[str, Sequence[tuple[str, int | None]]]
    counts: Mapping[str, int]

    def verify(self, path: Path) -> Iterator[str]:
        """Yield a sentence for each check of a receipt that passed. Raise ForgettingError at a fault."""
        receipts = self.chain.receipts
        if (receipt := receipts.get(path.name)) is None:
            raise ForgettingError(f"{path.name} is not in the chain of the run's receipts")
        yield f"it is number {receipt.number} of an unbroken chain of {len(receipts)}"
        last = self.chain.last[receipt.request]
        yield _ledger_agrees(receipt, last, self.status.get(receipt.request, "nothing of it"))
        if receipt.outcome == "done":
            yield _every_location(receipt)
            yield from self._nothing_left(receipt)
            yield from self._audits(path.name, receipt)

    def _nothing_left(self, receipt: Receipt) -> Iterator[str]:
        for name in receipt.scope.ids:
            for place, offset in self.left.get(name, ()):
                may_return = receipt.on_return == "learn" and (offset is None or offset >= receipt.offset)
                if not may_return:
                    raise ForgettingError(f"{place} still hold an erased sample, at offset {offset}")
        for place, count in self.counts.items():
            yield f"none of the {count} ids in {place} is one of the {len(receipt.scope.ids)} erased"
        if self._statistics is not None:
            yield _no_statistics(self._statistics, receipt)
        yield _no_older_checkpoint(self._checkpoints, receipt)

    @cached_property
    def _statistics(self) -> frozenset[str] | None:
        """The classes or subjects of which sums are stored; None where the run stores none."""
        if not (self.folder / STATISTICS).is_file():
            return None
        with closing(BlockFile(self.folder / STATISTICS)) as file:
            return frozenset(cohort.hex() for cohort in file.cohorts())

    @cached_property
    def _checkpoints(self) -> Mapping[str, StoredCheckpoint]:
        """The run's checkpoints by their names, the oldest first."""
        return {path.name: StoredCheckpoint(path) for path in list_checkpoints(self.folder / "checkpoints")}

    @cached_property
    def _audits_of(self) -> Mapping[str, hash_chain.Chain]:
        """The audits of each request."""
        found: dict[str, hash_chain.Chain] = {}
        for audit in self.chain.audits:
            found.setdefault(audit.body["request"], []).append(audit)
        return found

    def _audits(self, name: str, receipt: Receipt) -> Iterator[str]:
        """Check that the audits of a receipt are of no other."""
        for audit in self._audits_of.get(receipt.request, ()):
            number = audit.body["number"]
            if audit.body["receipt"] != self.chain.hashes[name]:
                raise ForgettingError(f"audit number {number} is the audit of another receipt")
            place = f"number {number} of {len(self.chain.audits)}"
            yield f"an audit belongs to it, {place}: {_verdict(audit.body)}"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint of the run; what is derived from its files is derived once."""

    path: Path

    @cached_property
    def manifest_sha256(self) -> str:
        """The hash of its manifest."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def learner_sha256(self) -> str:
        """The hash of the model in it. Raise ForgettingError where it cannot be read."""
        try:
            return state_hash(verify_checkpoint(self.path, ManifestMac()).state["learner"])
        except (CorruptCheckpoint, CheckpointError) as error:
            raise ForgettingError(f"{self.path.name} cannot be read: {error}") from error


def read_records(folder: Path, keys: PublicKeys) -> RunRecords:
    """Return the records of a run, once its chain is verified (see `verify_chain`)."""
    with Ledger(folder / LEDGER) as ledger:
        entries = ledger.entries()
        chain = verify_chain(folder, entries, keys)
        _of_this_run(chain, ledger_identity(ledger))
        erased = {name for receipt in chain.receipts.values() for name in receipt.scope.ids}
        left: dict[str, list[tuple[str, int | None]]] = {}
        counts = {}
        places = {"the logs": logged_ids(folder), "the lineage": _lineage_ids(folder)}
        if (folder / ANNOTATIONS).exists():
            places["the annotations"] = ((None, name) for name in annotated_records(folder))
        if unknown_files(folder):
            places["copies of logs"] = copied_ids(folder)
        for place, ids in places.items():
            counts[place] = 0
            for offset, name in ids:
                counts[place] += 1
                if (digest := ledger.fingerprint("sample", name)) in erased:
                    left.setdefault(digest, []).append((place, offset))
    return RunRecords(folder, chain, {entry.id: entry.status for entry in entries}, left, counts)


def _of_this_run(chain: VerifiedChain, identity: str) -> None:
    """Check that no receipt was made in another run, whose names have other hashes."""
    for name, receipt in chain.receipts.items():
        if receipt.ledger not in {None, identity}:
            raise ForgettingError(f"{name} is the receipt of another run")


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
        if status in PENDING:
            return "it has been requested again, and is not carried out yet"
    if status != receipt.outcome:
        raise ForgettingError(f"the ledger says {status}, the receipt says {receipt.outcome}")
    return f"the ledger says {status} too"


def _no_statistics(cohorts: frozenset[str], receipt: Receipt) -> str:
    """Check that no sums are stored of a class or subject that was erased, unless it may have come again."""
    if receipt.on_return == "drop" and not cohorts.isdisjoint(receipt.scope.cohorts):
        raise ForgettingError("the stored statistics still hold sums of what was erased")
    return f"none of the {len(cohorts)} stored statistics is of what was erased"


def _lineage_ids(folder: Path) -> Iterator[tuple[int | None, str]]:
    if not (folder / LINEAGE).is_file():
        return
    with closing(Lineage(folder / LINEAGE)) as lineage:
        yield from lineage.ids()


def _no_older_checkpoint(stored: Mapping[str, StoredCheckpoint], receipt: Receipt) -> str:
    """Check that no checkpoint is from before the erasure, and that the one made then is unchanged."""
    made = receipt.checkpoint
    if made is None:
        return "the run keeps no checkpoints"
    if (oldest := min(stored, default=made.name)) < made.name:
        raise ForgettingError(f"{oldest} is from before the erasure")
    if (checkpoint := stored.get(made.name)) is None:
        return f"no checkpoint is older than {made.name}"
    if checkpoint.manifest_sha256 != made.manifest_sha256:
        raise ForgettingError(f"{made.name} is not the checkpoint that the erasure made")
    if checkpoint.learner_sha256 != receipt.learner_after:
        raise ForgettingError(f"the model in {made.name} is not the one that the receipt names")
    return (
        f"{made.name} is the checkpoint that the erasure made, and the oldest there is; "
        "its model has the hash that the receipt names"
    )
