"""The way of a request through a run: taken in, carried out once, sealed so that nothing older is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting import redaction, requests
from streamcl.forgetting.eraser import Eraser, redaction_target
from streamcl.forgetting.ledger import Ledger, LedgerEntry
from streamcl.forgetting.lineage import Lineage
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts.archive import ReceiptArchive, attempts, receipt_path
from streamcl.forgetting.receipts.receipt import (
    ErasureOutcome,
    PurgedCheckpoint,
    Receipt,
    build_receipt,
    log_entry,
)
from streamcl.forgetting.run_resources import RunResources
from streamcl.forgetting.tombstones import Tombstones
from streamcl.protocols import BatchRecord, State


class ForgettingService:
    """Carries requests out between two batches, each once, however often the process dies meanwhile.

    The processor asks for what is `pending`, calls `erase`, commits, and calls `seal`. What `erase` did is in
    the state that the commit makes durable, so a request that a crash left unfinished is either erased from
    a state that never was touched, or only sealed (again), never subtracted twice.

    schedule: requests that fall due at their offsets. methods: those to choose from, of equal guarantees the
    one listed first.
    """

    def __init__(
        self,
        belongings: RunResources,
        ledger: Ledger,
        lineage: Lineage,
        methods: Sequence[ForgettingMethod],
        *,
        schedule: Sequence[ForgetRequest] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._ledger, self._lineage = belongings, ledger, lineage
        self._tombstones = Tombstones(ledger)
        self._clock = clock
        self._erasure = Eraser(belongings, ledger, lineage, methods, admit=self.admit, clock=clock)
        self._schedule = sorted(schedule, key=lambda each: each.offset)
        self._orders: dict[str, ForgetRequest] = {}
        self._applied: dict[str, ErasureOutcome] = {}
        self._archive = ReceiptArchive(belongings.folder, disk=belongings.disk)
        self._offset = 0
        self._late: set[str] = set()
        self._failed = [entry for entry in ledger.entries() if entry.progress == "failed"]
        self._unscrubbed = {
            entry.id for entry in ledger.entries() if _is_over(entry) and entry.body is not None
        }

    def submit(self, request: ForgetRequest) -> None:
        """Put a request that came with the stream into the ledger."""
        requests.submit_from_stream(self._ledger, request)

    def ask(self, request: ForgetRequest) -> str:
        """Put a request from elsewhere into the ledger (see `requests.submit`) and return its id."""
        return requests.submit(self._ledger, request).id

    def ask_again(self, name: str) -> str:
        """Let a request that has failed be carried out before the next batch, named by its id or its key."""
        return requests.retry(self._ledger, name).id

    def overdue(self) -> list[Mapping[str, Any]]:
        """The requests whose deadline has passed before they were carried out, each told once."""
        now = self._clock()
        found: list[Mapping[str, Any]] = []
        for entry in (*self._ledger.pending(), *self._failed):
            deadline = (entry.body or {}).get("deadline")
            if isinstance(deadline, int | float) and deadline < now and entry.id not in self._late:
                self._late.add(entry.id)
                found.append({"request": entry.id, "progress": entry.progress, "deadline": deadline})
        return found

    def pending(self, offset: int) -> list[ForgetRequest]:
        """What is to be carried out before the batch at `offset`, in the order of arrival."""
        while self._schedule and self._schedule[0].offset <= offset:
            self._ledger.submit(self._schedule.pop(0).model_dump(mode="json"))
        orders = (self._read(entry) for entry in self._ledger.pending())
        return [each for each in orders if each is not None and each.offset <= offset]

    def admit(self, batch: Batch) -> Batch:
        """The batch without what has a tombstone; such a record keeps its offset, its id goes."""
        return self._tombstones.drop_erased(batch)

    def after_batch(self, record: BatchRecord, contents: Sequence[bytes] | None = None) -> None:
        """Record the samples of a batch in the lineage, and which of them were learned.

        contents: the hashes of its images, where other ranks hold some.
        """
        learned = record.result.learned
        self._lineage.record(record.batch, learned=learned, segment=record.segment, contents=contents)
        self._offset = record.batch.end

    @property
    def salt(self) -> bytes:
        """What the lineage's hashes of images are salted with (see `lineage.content_of`)."""
        return self._lineage.salt

    def flush(self) -> None:
        """Make the lineage and kept sums durable, before the commit that counts on them."""
        self._lineage.flush()
        if self._run.kept is not None:
            self._run.kept.flush(self._offset)
        self._scrub()

    def erase(self, request: ForgetRequest, offset: int) -> Mapping[str, Any] | None:
        """Erase from the learner, the metrics and the gallery; what to log, None where it was done before.

        A request that cannot be carried out changes nothing, and its outcome says why.
        """
        if request.id in self._applied:
            return None
        self._ledger.start(request.id)
        number = attempts(self._run.folder, request.id) + 1
        outcome = self._erasure.carry_out(request, offset)
        self._applied[request.id] = outcome.model_copy(update={"attempt": number})
        return log_entry(request, self._applied[request.id])

    def retest(self, offset: int) -> list[tuple[str, Mapping[str, Any]]]:
        """Test whether something erased has come back, and ask for its erasure anew; what to log, by kind."""
        monitor = self._run.monitor
        figures, found = monitor.retest(self._run.learner, offset) if monitor is not None else ({}, ())
        for relapse in found:
            if relapse.again is not None:
                requests.submit_from_stream(self._ledger, relapse.again)
        return [("retest", figures)] * bool(figures) + [("relapse", each.figures) for each in found]

    def seal(self, request: ForgetRequest) -> None:
        """After the commit: tombstones, older checkpoints, logs, receipt, lineage; then it is done."""
        outcome = self._applied[request.id]
        receipt = build_receipt(
            request, outcome, self._ledger, completed=self._clock(), config=self._run.fingerprint
        )
        if outcome.outcome == "done":
            self._seal_erased(request, receipt)
        else:
            self._archive.write(receipt)
            end = self._ledger.refuse if outcome.outcome == "refused" else self._ledger.fail
            end(request.id, str(outcome.reason))
        self._late.discard(request.id)
        self._failed = [entry for entry in self._ledger.entries() if entry.progress == "failed"]
        del self._applied[request.id]
        self._orders.pop(request.id, None)
        self._unscrubbed.add(request.id)
        self._scrub()

    def begin(self) -> None:
        """Start with a stream of which nothing has passed."""
        self.truncate(0)
        if self._run.kept is not None:
            self._run.kept.begin()

    def state_dict(self) -> State:
        """The requests erased and not yet sealed, with what came of them, and the ledger's position."""
        monitor = self._run.monitor
        kept = {} if self._run.kept is None else {"kept": self._run.kept.state_dict()}
        return {
            "applied": {name: each.to_json() for name, each in self._applied.items()},
            "late": sorted(self._late),
            "ledger": self._ledger.position,
            "monitor": None if monitor is None else monitor.state_dict(),
            **kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the forgetter that returned `state`. Raises ForgettingError where the ledger is older."""
        if self._ledger.position < state["ledger"]:
            raise ForgettingError(
                f"the ledger in {self._run.folder} is older than the checkpoint and lacks requests",
                hint="restore ledger.sqlite; without it what was forgotten may be learned again",
            )
        if self._run.monitor is not None and state.get("monitor") is not None:
            self._run.monitor.load_state_dict(state["monitor"])
        unfinished = {entry.id for entry in self._ledger.pending()}
        applied = {name: ErasureOutcome.from_json(each) for name, each in state["applied"].items()}
        self._applied = {
            name: each
            for name, each in applied.items()
            if name in unfinished and not self._is_reported(name, each)
        }
        self._late = set(state["late"])
        if self._run.kept is not None:
            self._run.kept.load_state_dict(state["kept"])

    def truncate(self, offset: int) -> None:
        """Forget what passed at or after an offset: the stream goes on from there."""
        self._lineage.truncate(offset)
        self._offset = offset

    def close(self) -> None:
        """Let the files go."""
        self._lineage.close()
        self._ledger.close()
        if self._run.kept is not None:
            self._run.kept.close()

    def _seal_erased(self, request: ForgetRequest, receipt: Receipt) -> None:
        """Leave nothing older than the erasure; each step may be made again after a crash."""
        run, target = self._run, redaction_target(request, self._lineage)
        self._tombstones.add_tombstones(request, target.ids)
        checkpoint = None if run.vault is None else PurgedCheckpoint.from_json(run.vault.seal())
        changed = run.sink.redact(target)
        derived = redaction.remove_derived(run.folder, disk=run.disk)
        if run.kept is not None:
            run.kept.seal()
        on_disk = locations.on_disk(request.kind, checkpoint, changed, derived, len(target.offsets))
        hashes = {
            "ids": tuple(sorted(self._ledger.fingerprint("sample", name) for name in target.ids)),
            "label": None if target.label is None else self._ledger.fingerprint("class", target.label),
        }
        update = {
            "checkpoint": checkpoint,
            "locations": (*receipt.locations, *on_disk),
            "scope": receipt.scope.model_copy(update=hashes),
        }
        self._archive.write(receipt.model_copy(update=update))
        self._lineage.erase(sorted(target.offsets))
        self._ledger.finish(request.id)

    def _read(self, entry: LedgerEntry) -> ForgetRequest | None:
        """The request of a pending entry; one that cannot be read is refused here."""
        if entry.id not in self._orders:
            try:
                self._orders[entry.id] = requests.read(entry)
            except ForgettingError as error:
                self._ledger.refuse(entry.id, str(error))
                return None
        return self._orders[entry.id]

    def _is_reported(self, name: str, outcome: ErasureOutcome) -> bool:
        """Whether this failure has its receipt already: then what is pending is another attempt."""
        path = receipt_path(self._run.folder, name, outcome.attempt)
        return outcome.outcome != "done" and path.exists()

    def _scrub(self) -> None:
        """Overwrite what finished requests said; where another process is reading, at the next commit."""
        for name in sorted(self._unscrubbed):
            try:
                if self._ledger.entry(name).progress != "failed":
                    self._ledger.scrub(name)
            except ForgettingError:
                return
            self._unscrubbed.discard(name)


def _is_over(entry: LedgerEntry) -> bool:
    return entry.progress in {"done", "refused"}
