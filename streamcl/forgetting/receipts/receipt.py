"""The receipt of a request to forget: its outcome, location by location, without names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from streamcl import __version__
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger.ledger import Ledger
from streamcl.forgetting.methods.protocol import SHARED_PARTS, DataLocation
from streamcl.requests.terms import Guarantee, Kind, OnReturn

Ending: TypeAlias = Literal["done", "refused", "failed"]

LOCATIONS = frozenset(
    {
        *("head statistics", *SHARED_PARTS, "hard buffer", "prototypes", "calibration", "stored statistics"),
        *("shift detector", "metrics", "prediction log, quarantine and events", "thumbnails", "exports"),
        *("report and summary", "caches", "checkpoints", "ledger", "lineage", "metrics services"),
        "source data",
    }
)
"""The locations that every receipt of an erasure accounts for; methods and runs may add others."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the object of which `to_json` gave this. Raise ForgettingError where a field is wrong."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ForgettingError(f"not a valid receipt: {place}: {first['msg']}") from error

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return self.model_dump(mode="json")


class ScopeSummary(_Part):
    """The numbers of samples that the request reached, and keyed hashes of their names.

    learned, passed: samples that were learned, and that passed whether learned or not. ids, label, names:
    what `verify` looks for; names are those of classes, domains and held-out parts without a sample left.
    unlearned: those of `ids` whose samples were never learned, such as held-out ones.
    cohorts: classes or subjects that were erased completely.
    """

    learned: int | None = None
    passed: int | None = None
    ids: tuple[str, ...] = ()
    unlearned: tuple[str, ...] = ()
    label: str | None = None
    names: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()


class UtilityFigures(_Part):
    """Accuracy on held-out samples of what stays, before and after.

    changed: those of them for which another class is named after than before; None in older receipts.
    expected_changed: the expectation of it for an erasure of so many samples drawn at random; None where it
        was not asked for (`answer.stability`), or the learner cannot compute it.
    """

    samples: int
    before: float
    after: float
    changed: int | None = None
    expected_changed: float | None = None


class PurgedCheckpoint(_Part):
    """The checkpoint that the erasure made, and how many older ones were removed."""

    name: str
    manifest_sha256: str
    removed: int


class ErasureOutcome(_Part):
    """The outcome of a request in memory; a checkpoint keeps it until the receipt is written.

    offset: the record before which it took effect. attempt: counts attempts of the same request. reason: why
    it was refused or failed. method_reason: why this method and none stronger. residual: the remaining risk.
    figures: evidence, by name. learner_before: keyed hash of the learner's state, with which nobody but the
    operator can test a guess at what was erased. learner_after: plain hash of it.
    """

    outcome: Ending
    offset: int
    started: float | None = None
    attempt: int = 1
    reason: str | None = None
    method: str | None = None
    method_reason: str | None = None
    guarantee: Guarantee | None = None
    residual: str | None = None
    scope: ScopeSummary = ScopeSummary()
    figures: dict[str, Any] = {}
    utility: UtilityFigures | None = None
    learner_before: str | None = None
    learner_after: str | None = None
    locations: tuple[DataLocation, ...] = ()


class Receipt(ErasureOutcome):
    """The whole receipt. Times are in seconds since the epoch; names appear as keyed hashes only.

    kind: "unreadable" where what was submitted is no request. requested_guarantee: the weakest that the
    request accepted. config: the fingerprint of the configuration. checkpoint: None where the run keeps none.
    audits: hash of the newest audit then. number, previous: place in the chain and hash of the receipt
    before. signed_by: id of the key that signs it; None where the run had no key, so that it proves nothing
    to others. run: the name of the run directory. requested_by, grounds: as the request says.
    ledger: a keyed hash by which `verify` tells the receipts of this run from those of any other.
    """

    request: str
    run: str | None = None
    ledger: str | None = None
    requested_by: str | None = None
    grounds: str | None = None
    key: str | None = None
    kind: Kind | Literal["unreadable"]
    requested_guarantee: Guarantee | None = None
    on_return: OnReturn
    received: float
    completed: float
    deadline: float | None = None
    late_by: float | None = None
    config: str = ""
    checkpoint: PurgedCheckpoint | None = None
    streamcl: str = __version__
    verify: str | None = None
    audits: str | None = None
    format: int | None = None
    number: int | None = None
    previous: str | None = None
    signed_by: str | None = None


def build_receipt(
    request: ForgetRequest,
    outcome: ErasureOutcome,
    ledger: Ledger,
    *,
    completed: float,
    config: str,
    run: str,
) -> Receipt:
    """Return the receipt of a request as far as it does not depend on what is removed from disk.

    Args:
        request: the request that is over.
        outcome: what came of it.
        ledger: gives the time of arrival and keyed hashes.
        completed: when the request is over, in seconds since the epoch.
        config: the fingerprint of the run's configuration.
        run: the name of the run's directory.
    """
    return Receipt(
        **dict(outcome),
        request=request.id,
        run=run,
        requested_by=request.requested_by,
        grounds=request.grounds,
        key=None if request.key is None else ledger.fingerprint("key", request.key),
        kind=request.kind,
        requested_guarantee=request.guarantee,
        on_return=request.on_return,
        ledger=ledger_identity(ledger),
        received=ledger.entry(request.id).received,
        completed=completed,
        deadline=request.deadline,
        late_by=None if request.deadline is None else max(0.0, completed - request.deadline),
        config=config,
    )


def ledger_identity(ledger: Ledger) -> str:
    """Return a keyed hash that is another one for every ledger: the key follows from its own salt."""
    return ledger.fingerprint("run", "")


def log_entry(request: ForgetRequest, outcome: ErasureOutcome) -> dict[str, Any]:
    """Return the record of the request in events.jsonl."""
    done = {"method": outcome.method, "guarantee": outcome.guarantee}
    return {
        "reason": outcome.method_reason or outcome.reason,
        "request": request.id,
        "request_kind": request.kind,
        "samples": outcome.scope.learned or 0,
        "outcome": outcome.outcome,
        **{name: value for name, value in done.items() if value is not None},
    }
