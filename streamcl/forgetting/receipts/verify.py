"""Checks a receipt against what can be derived again: its bytes, its chain, and the files of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from streamcl.errors import CheckpointError, ForgettingError
from streamcl.forgetting.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage import LINEAGE, Lineage
from streamcl.forgetting.receipts.archive import read_audits, read_receipt, read_receipts
from streamcl.forgetting.receipts.receipt import LOCATIONS, Receipt
from streamcl.forgetting.statistics.block_file import BlockFile
from streamcl.forgetting.statistics.store import STATISTICS
from streamcl.sinks.jsonl import logged_ids
from streamcl.storage.checkpoint import list_checkpoints
from streamcl.storage.checkpoint_format import MANIFEST, CorruptCheckpoint, verify_checkpoint
from streamcl.storage.hash_chain import sha256_of
from streamcl.storage.plain_state import state_hash


def verify_receipt(path: Path) -> list[str]:
    """Return a sentence for each check that passed. Raise ForgettingError at the first fault.

    The model's hash is derived again from the checkpoint that the erasure made, as long as that exists. Of a
    receipt outside its run only the bytes are checked.
    """
    receipt = read_receipt(path)
    found = ["every byte is as it was written"]
    folder = path.resolve().parent.parent
    if not (folder / LEDGER).is_file():
        return [*found, "it lies outside its run, so nothing else can be checked"]
    chain = read_receipts(folder)
    found.append(f"it is number {receipt.number} of an unbroken chain of {len(chain)}")
    with Ledger(folder / LEDGER) as ledger:
        found.append(_ledger_agrees(receipt, chain, ledger.entry(receipt.request).status))
        if receipt.outcome == "done":
            found.append(_every_location(receipt))
            found += _nothing_left(folder, receipt, ledger)
    return [*found, *_audits(folder, path, chain)]


def _every_location(receipt: Receipt) -> str:
    """Check that the receipt accounts for every location where the data could be."""
    named = {location.name for location in receipt.locations}
    if missing := sorted(LOCATIONS - named):
        raise ForgettingError(f"it does not mention the {missing[0]}")
    return f"it accounts for {len(named)} locations by name"


def _audits(folder: Path, path: Path, receipts: Sequence[tuple[Path, Receipt]]) -> Iterator[str]:
    """Check that audits are chained, each belongs to its receipt, and none that one names is missing."""
    audits = read_audits(folder)
    known = {sha256_of(each) for each, _ in audits}
    for name, earlier in receipts:
        if earlier.audits not in {None, *known}:
            raise ForgettingError(f"an audit that {name.name} refers to is missing, or has been changed")
    own, digest = read_receipt(path), sha256_of(path)
    for each, content in audits:
        if content["request"] == own.request and own.outcome == "done":
            if content["receipt"] != digest:
                raise ForgettingError(f"{each.name} is the audit of another receipt")
            yield f"an audit belongs to it, number {content['number']} of {len(audits)}: {_verdict(content)}"


def _verdict(content: Mapping[str, Any]) -> str:
    audit = content["audit"]
    return f"{audit['verdict']}, compared with {audit['models']['references']} retrained models"


def _ledger_agrees(receipt: Receipt, chain: Sequence[tuple[Path, Receipt]], status: str) -> str:
    """Check that the ledger agrees with the receipt, unless a request that had failed was retried."""
    later = [each.number for _, each in chain if each.request == receipt.request]
    if receipt.outcome == "failed":
        if later[-1] != receipt.number:
            return f"it was tried again: the receipt of the last attempt is number {later[-1]}"
        if status in {"received", "started"}:
            return "it has been requested again, and is not carried out yet"
    if status != receipt.outcome:
        raise ForgettingError(f"the ledger says {status}, the receipt says {receipt.outcome}")
    return f"the ledger says {status} too"


def _nothing_left(folder: Path, receipt: Receipt, ledger: Ledger) -> Iterator[str]:
    erased = frozenset(receipt.scope.ids)
    late = receipt.offset if receipt.on_return == "learn" else None
    for place, ids in (("the logs", logged_ids(folder)), ("the lineage", _lineage_ids(folder))):
        count = 0
        for offset, name in ids:
            count += 1
            allowed = late is not None and (offset is None or offset >= late)
            if not allowed and ledger.fingerprint("sample", name) in erased:
                raise ForgettingError(f"{place} still hold an erased sample, at offset {offset}")
        yield f"none of the {count} ids in {place} is one of the {len(erased)} erased"
    if (folder / STATISTICS).is_file():
        yield _no_statistics(folder, receipt)
    yield _no_older_checkpoint(folder, receipt)


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
