"""Accepts requests, executes each once between two batches, and drops erased samples from the stream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.corrections import SampleCorrections
from streamcl.forgetting.erasure.eraser import Eraser
from streamcl.forgetting.erasure.erasure_plan import ErasurePlan
from streamcl.forgetting.erasure.returned_records import ReturnedRecords
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.ledger import requests
from streamcl.forgetting.ledger.ledger import Ledger, LedgerEntry
from streamcl.forgetting.ledger.tombstones import Tombstones, names_dropped
from streamcl.forgetting.lineage.feature_binding import FeatureBinding
from streamcl.forgetting.lineage.feature_probe import FeatureChecks, ProbeHistory
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.methods.protocol import ForgettingMethod
from streamcl.forgetting.receipts.archive import receipt_path
from streamcl.forgetting.receipts.receipt import ErasureOutcome, log_entry
from streamcl.protocols import BatchRecord, ForgettingEvent, State
from streamcl.storage.plain_state import state_hash

REQUESTS_AT_ONCE = 256
"""Requests of one erasure at most: their outcomes are in the checkpoint until the receipts are written."""
ROWS_AT_ONCE = 100_000
"""Selected records after which an erasure takes no further request: their ids, some 10 MB, are in memory."""

OVERDUE = "the deadline of a request has passed, and it is not carried out"


class ForgettingService:
    """Executes requests between two batches, each once, however often the process dies meanwhile.

    The result of an erasure in memory is in the state that the next commit makes durable. So a request that a
    crash left unfinished is either erased from a state without that erasure, or only finalised (again), never
    subtracted twice.

    schedule: requests that fall due at their offsets. methods: those to choose from. corrections: of labels.
    """

    def __init__(
        self,
        resources: RunResources,
        ledger: Ledger,
        lineage: Lineage,
        methods: Sequence[ForgettingMethod],
        *,
        schedule: Sequence[ForgetRequest] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._ledger, self._lineage = resources, ledger, lineage
        self._tombstones = Tombstones(ledger)
        self._clock = clock
        self._features = FeatureBinding(lineage.key)
        self._features.observe(resources.learner)
        self._probes = ProbeHistory(ledger, resources.probe)
        checks = FeatureChecks(self._features.drift, self._probes.difference_from_learned)
        self._eraser = Eraser(
            resources, ledger, lineage, methods, checks, tombstones=self._tombstones, clock=clock
        )
        self.corrections = SampleCorrections(resources, lineage, checks)
        self._schedule = sorted(schedule, key=lambda each: each.offset)
        self._requests: dict[str, ForgetRequest] = {}
        self._applied: dict[str, ErasureOutcome] = {}
        self._offset = 0
        self._late: set[str] = set()
        self._returned = ReturnedRecords(resources)
        self._failed, self._unscrubbed = ledger.failed(), set(ledger.unscrubbed())

    def submit(self, request: ForgetRequest) -> str:
        """Put a request into the ledger (see `requests.submit`) and return its id."""
        return requests.submit(self._ledger, request).id

    def submit_from_stream(self, request: ForgetRequest) -> None:
        """Put a request that the source has yielded into the ledger (see `requests.submit_from_stream`)."""
        requests.submit_from_stream(self._ledger, request)

    def retry(self, name: str) -> str:
        """Execute a failed request again before the next batch, named by its id or its key; return its id."""
        return requests.retry(self._ledger, name).id

    def before_batch(self, offset: int) -> Iterator[ForgettingEvent]:
        """Execute the requests that are due before the batch at `offset`, in the order of arrival.

        Yield each as soon as it is executed in memory; the last of those that are executed together asks for
        a commit, and the next step finalises them on disk. A request that cannot be executed changes nothing;
        its event gives the reason.
        """
        yield from self._overdue()
        due = self._due(offset)
        for waiting in (
            deque(each for each in due if each.id in self._applied),  # first, for they are erased already
            deque(each for each in due if each.id not in self._applied),
        ):
            while waiting:
                yield from self._erase(waiting, offset)

    def _erase(self, waiting: deque[ForgetRequest], offset: int) -> Iterator[ForgettingEvent]:
        """Carry out the first of the requests that wait: one erasure, one commit, a receipt for each."""
        with ExitStack() as stack:
            plans: list[ErasurePlan] = []
            before, rows, is_last = None, 0, False
            while not is_last:
                request = waiting.popleft()
                plans.append(plan := stack.enter_context(closing(self._eraser.plan(request))))
                figures: Mapping[str, Any] = {}
                if request.id not in self._applied:
                    self._ledger.start(request.id)
                    self._applied[request.id] = self._eraser.execute(plan, offset, before)
                    figures = log_entry(request, self._applied[request.id])
                outcome = self._applied[request.id]
                if outcome.outcome == "done":
                    self._eraser.hide(plan)
                before, rows = before or outcome.learner_before, rows + plan.rows.count
                is_last = not waiting or len(plans) == REQUESTS_AT_ONCE or rows >= ROWS_AT_ONCE
                if is_last:
                    self._note_learner(plans)
                yield ForgettingEvent("forget", figures, to_commit=is_last)
            self.finalise(plans)

    def _note_learner(self, plans: Sequence[ErasurePlan]) -> None:
        """Note, for receipts, the hash of the learner that an erasure leaves."""
        executed = {
            plan.request.id: outcome
            for plan in plans
            if (outcome := self._applied[plan.request.id]).outcome == "done" and outcome.learner_after is None
        }
        if executed:
            after = {"learner_after": state_hash(self._run.learner.state_dict())}
            self._applied |= {name: each.model_copy(update=after) for name, each in executed.items()}

    def filter(self, batch: Batch) -> Batch:
        """Return the batch without samples that have a tombstone; their records keep their offsets."""
        filtered = self._tombstones.drop_erased(batch)
        if filtered is not batch:
            self._returned.add(*names_dropped(batch, filtered))
        return filtered

    def after_batch(self, record: BatchRecord, contents: Sequence[bytes] | None = None) -> None:
        """Record the samples of a batch in the lineage, and which of them were learned.

        contents: the hashes of its images, where other ranks hold some.
        """
        self._lineage.record(
            record.batch,
            learned=record.result.learned,
            segment=record.segment,
            contents=contents,
            features=self._features.take(record.batch.samples),
        )
        self._offset = record.batch.end

    def retest(self, offset: int) -> list[ForgettingEvent]:
        """Test whether something erased has come back, and request its erasure anew."""
        if (monitor := self._run.relapse) is None:
            return []
        figures, found = monitor.retest(self._run.learner, offset)
        for relapse in found:
            if relapse.request is not None:
                requests.submit_from_stream(self._ledger, relapse.request)
        tested = [ForgettingEvent("retest", figures)] if figures else []
        return tested + [ForgettingEvent("relapse", each.figures) for each in found]

    def commit(self) -> None:
        """Make lineage and stored statistics durable, before the checkpoint that refers to them.

        What came again although it is forgotten leaves the copies that the source keeps.
        """
        self._lineage.commit()
        if self._run.statistics is not None:
            self._run.statistics.flush(self._offset)
        self._returned.erase()
        self._scrub()

    def hides_part(self, name: str) -> bool:
        """Return whether a held-out part bears the name of a class or a domain that was erased."""
        return self._ledger.is_tombstoned("part", name)

    @property
    def content_key(self) -> bytes:
        """The key of the lineage's hashes of images (see `image_hash.hash_of_image`)."""
        return self._lineage.key

    def finalise(self, plans: Sequence[ErasurePlan]) -> None:
        """Erase on disk what executed plans have erased in memory, and write their receipts."""
        self._eraser.finalise([(plan, self._applied[plan.request.id]) for plan in plans])
        for name in (plan.request.id for plan in plans):
            self._late.discard(name)
            del self._applied[name]
            self._requests.pop(name, None)
            self._unscrubbed.add(name)
        self._failed = self._ledger.failed()
        self._scrub()

    def state_dict(self) -> State:
        """Return the requests that are executed and not finalised, and the position of the ledger."""
        monitor = self._run.relapse
        stored = self._run.statistics
        return {
            "applied": {name: each.to_json() for name, each in self._applied.items()},
            "late": sorted(self._late),
            "ledger": self._ledger.position,
            "monitor": None if monitor is None else monitor.state_dict(),
            "offset": self._offset,
            "statistics": None if stored is None else stored.state_dict(),
            **({"relabelled": self._lineage.relabelled} if self._lineage.relabelled else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the service that returned `state`; an empty one starts a stream of which nothing has passed.

        What was recorded after that state is dropped. Raise ForgettingError where the ledger is older.
        """
        if not state:
            self._go_on_from(0, {"moment": 0}, 0)
            return
        if self._ledger.position < state["ledger"]:
            raise ForgettingError(
                f"the ledger in {self._run.folder} is older than the checkpoint and lacks requests",
                hint="restore ledger.sqlite; without it what was forgotten may be learned again",
            )
        if self._run.relapse is not None and state.get("monitor") is not None:
            self._run.relapse.load_state_dict(state["monitor"])
        unfinished = {entry.id for entry in self._ledger.pending()}
        applied = {name: ErasureOutcome.from_json(each) for name, each in state["applied"].items()}
        self._applied = {
            name: each
            for name, each in applied.items()
            if name in unfinished and not self._is_reported(name, each)
        }
        self._late = set(state["late"])
        self._go_on_from(state["offset"], state["statistics"], state.get("relabelled", 0))

    def _go_on_from(self, offset: int, statistics: Mapping[str, Any], relabelled: int) -> None:
        """Drop what was recorded at or after an offset: the stream goes on from there."""
        self._lineage.truncate(offset, relabelled)
        self._probes.begin(offset)
        self._offset = offset
        if self._run.statistics is not None:
            self._run.statistics.load_state_dict(statistics)

    def _overdue(self) -> Iterator[ForgettingEvent]:
        """Yield each request whose deadline has passed before it was carried out, once."""
        now = self._clock()
        for entry in (*self._ledger.pending(), *self._failed):
            deadline = (entry.body or {}).get("deadline")
            if isinstance(deadline, int | float) and deadline < now and entry.id not in self._late:
                self._late.add(entry.id)
                figures = {"request": entry.id, "status": entry.status, "deadline": deadline}
                yield ForgettingEvent("overdue", {"reason": OVERDUE, **figures})

    def _due(self, offset: int) -> list[ForgetRequest]:
        """Return the pending requests that take effect at or before `offset`."""
        while self._schedule and self._schedule[0].offset <= offset:
            self._ledger.submit(self._schedule.pop(0).model_dump(mode="json"))
        pending = (self._read(entry) for entry in self._ledger.pending())
        return [each for each in pending if each is not None and each.offset <= offset]

    def _read(self, entry: LedgerEntry) -> ForgetRequest | None:
        """Return the request of a pending entry; one that is not valid is refused here."""
        if entry.id not in self._requests:
            try:
                self._requests[entry.id] = requests.read(entry)
            except ForgettingError as error:
                self._eraser.refuse_unreadable(entry, str(error), offset=self._offset)
                return None
        return self._requests[entry.id]

    def _is_reported(self, name: str, outcome: ErasureOutcome) -> bool:
        """Return whether this failure has a receipt already: then what is pending is another attempt."""
        path = receipt_path(self._run.folder, name, outcome.attempt)
        return outcome.outcome != "done" and path.exists()

    def _scrub(self) -> None:
        """Overwrite the content of finished requests; where another process reads, at the next commit."""
        try:
            entries = [self._ledger.entry(name) for name in sorted(self._unscrubbed)]
            if over := [entry.id for entry in entries if entry.status in {"done", "refused"}]:
                self._ledger.scrub(*over)
        except ForgettingError:
            return
        self._unscrubbed.clear()
