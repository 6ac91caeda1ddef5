"""The receipts in a run directory: canonical JSON, chained and signed, with an HTML page each.

The page is plain HTML without scripts, to read and print, in the look of the report.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from streamcl.errors import ForgettingError
from streamcl.forgetting.methods.protocol import DataLocation, LocationStatus
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.storage import files, hash_chain
from streamcl.storage.files import Disk
from streamcl.storage.signing import SigningKey

RECEIPTS, AUDITS = "receipts", "audits"
"""The folders' names in a run directory."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

KINDS = {
    "samples": "Single samples: the model without them",
    "subject": "Everything of a person or subject: the model without it",
    "class": "A whole class: the concept is to be gone",
    "unreadable": "A request that cannot be read",
}
GUARANTEE_MEANINGS = {
    "exact": "The model is the one that the stream would have made without these data, up to rounding.",
    "bounded": "What the model can still tell of these data is limited; the limit is in the evidence below.",
    "approximate": "Weights that many samples share were trained on these data. They were repaired or left "
    "as they are, so traces may remain; an audit says how well they can be seen.",
    "refused": "Not erased: the request was refused, and nothing was changed.",
    "failed": "Not erased: the erasure failed, and nothing was changed.",
}
NOT_SIGNED = "none: this run had no signing key, so the receipt proves nothing to others"
REMAINING: tuple[LocationStatus, ...] = ("remains", "not reachable")
"""Statuses of places where something of the data is left, or may be."""
ON_RETURN = {"drop": "it is not learned", "learn": "it may be learned"}


SigningKeySource: TypeAlias = Callable[[], AbstractContextManager[SigningKey | None]]
"""Gives the key that is in use, which none replaces before the block ends (see `KeyFolder.key_in_use`).

A key may be made or replaced while a run goes on, so a receipt is dated within the block, and signed with
that key even where another is in use when it is written.
"""


def no_signing_key() -> AbstractContextManager[None]:
    """Return no key: receipts are not signed, and say so."""
    return nullcontext()


class ReceiptArchive:
    """Writes the receipts of a run; each link of the chains is read once, not again for each receipt.

    newest: the newest receipt as it was remembered; where it is that, the earlier ones are not read at all.
    """

    def __init__(
        self, folder: Path, *, newest: hash_chain.ChainPlace | None = None, disk: Disk = files.DISK
    ) -> None:
        self._folder, self._disk = folder, disk
        self._receipts = hash_chain.ChainHead(folder / RECEIPTS, "receipt")
        self._audits = hash_chain.ChainHead(folder / AUDITS, "audit")
        if newest is not None:
            self._receipts.resume(newest)

    @property
    def newest(self) -> hash_chain.ChainPlace | None:
        """The newest receipt, to be remembered; None where there is none."""
        return self._receipts.place

    def write(self, receipt: Receipt, key: SigningKey | None = None) -> Path:
        """Chain a receipt to the newest one and write it atomically, its page first; one that exists stays.

        It names the newest audit, so that no audit can be removed unnoticed. Return its path.

        key: that was in use when the receipt was completed; it signs the receipt and the head of the chain.
        """
        path = receipt_path(self._folder, receipt.request, receipt.attempt)
        if not path.exists():
            files.make_folder(path.parent, disk=self._disk)
            verify = f"streamcl verify {RECEIPTS}/{path.name}"
            receipt = receipt.model_copy(update={"verify": verify, "audits": self._newest_audit()})
            link = self._receipts.next_link(receipt.to_json(), key)
            write_page(path, Receipt.from_json(link.body), disk=self._disk)
            self._receipts.write(link, path, disk=self._disk)
        if key is not None:
            self._receipts.sign(key, disk=self._disk)
        return path

    def _newest_audit(self) -> str | None:
        """Return its hash; a damaged audit is reported as such and keeps no receipt from being written."""
        try:
            self._audits.advance()
        except ForgettingError:
            return "damaged"
        return self._audits.sha256


def receipt_path(folder: Path, request: str, attempt: int = 1) -> Path:
    """Return where a request's receipt is. An id that is no plain file name is replaced by its sha256.

    A request that failed and was tried again has one for each attempt, <id>~2.json for the second.
    """
    name = file_name(request)
    return folder / RECEIPTS / (f"{name}.json" if attempt == 1 else f"{name}~{attempt}.json")


def newest_receipt(folder: Path, request: str) -> Path:
    """Return the path of the receipt of a request's last attempt, where there is any."""
    return receipt_path(folder, request, max(1, attempts(folder, request)))


def file_name(request: str) -> str:
    """Return the name of a request's files, without an ending."""
    if PLAIN_NAME.fullmatch(request):
        return request
    return hashlib.sha256(request.encode(errors="surrogatepass")).hexdigest()


def attempts(folder: Path, request: str) -> int:
    """Return how many receipts a request has: one for each attempt that is over."""
    number = 0
    while receipt_path(folder, request, number + 1).exists():
        number += 1
    return number


def read_receipt(path: Path) -> Receipt:
    """Return a receipt whose every byte is as it was written. Raise ForgettingError with what is wrong."""
    return Receipt.from_json(hash_chain.read_link(path, "receipt").body)


def read_receipts(folder: Path) -> list[tuple[Path, Receipt]]:
    """Return every receipt of a run in the order of the chain. Raise ForgettingError at a broken link."""
    chain = hash_chain.read_links(folder / RECEIPTS, "receipt")
    return [(link.path, Receipt.from_json(link.body)) for link in chain]


def read_audits(folder: Path) -> hash_chain.Chain:
    """Return every saved audit of a run in the order of its chain. Raise ForgettingError at a broken link."""
    return hash_chain.read_links(folder / AUDITS, "audit")


def write_page(path: Path, receipt: Receipt, *, audit: str = "", disk: Disk = files.DISK) -> Path:
    """Write the page of the receipt at `path` and return its path. audit: HTML of the newest audit."""
    page = path.with_suffix(".html")
    files.atomic_write(page, render_receipt(path.name, receipt, audit).encode(), disk=disk)
    return page


def render_receipt(name: str, receipt: Receipt, audit: str = "") -> str:
    """Return the page of the receipt in the file `name`; it holds no more than receipt and audit do."""
    done = receipt.outcome == "done"
    meaning = receipt.guarantee if done and receipt.guarantee else receipt.outcome
    details = f"Remaining risk: {receipt.residual}" if done and receipt.residual else receipt.reason
    template = html_environment("forgetting/receipts").get_template("receipt.html.j2")
    page: str = template.render(
        name=name,
        css=report_css(),
        receipt=receipt,
        title=f"Erased: {receipt.guarantee}" if done else receipt.outcome.capitalize(),
        meaning=GUARANTEE_MEANINGS.get(meaning, ""),
        details=details or "",
        remaining=_with_status(receipt, *REMAINING),
        touched=_with_status(receipt, *REMAINING, "erased"),
        untouched=_with_status(receipt, "not affected"),
        facts=[(label, text) for label, text in _facts(receipt) if text],
        evidence=_evidence(receipt),
        audit=Markup(audit),
    )
    return page


@cache
def html_environment(folder: str) -> Environment:
    """Return the templates in a folder of streamcl, which escape HTML and refuse undefined names."""
    loader = PackageLoader("streamcl", folder)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def report_css() -> Markup:
    """Return the style sheet of the report."""
    return Markup(PackageLoader("streamcl", "report").get_source(html_environment("report"), "report.css")[0])


def _with_status(receipt: Receipt, *statuses: LocationStatus) -> list[DataLocation]:
    """The locations with one of these statuses, in their order."""
    return [each for status in statuses for each in receipt.locations if each.status == status]


def _facts(receipt: Receipt) -> list[tuple[str, str | None]]:
    scope, done = receipt.scope, receipt.outcome == "done"
    counted = f"{scope.learned} learned, {scope.passed} seen" if scope.learned is not None else None
    method = f"{receipt.method}, streamcl {receipt.streamcl}" if receipt.method else None
    return [
        ("Run", receipt.run),
        ("Request", receipt.request),
        ("Requested by", receipt.requested_by),
        ("Grounds", receipt.grounds),
        ("Kind", KINDS[receipt.kind]),
        ("Guarantee requested", receipt.requested_guarantee),
        ("Received", _moment(receipt.received)),
        ("Completed" if done else "Answered", _moment(receipt.completed)),
        ("Deadline", _deadline(receipt)),
        ("Samples", counted),
        ("Position in the stream", f"before record {receipt.offset}"),
        ("If it comes again", ON_RETURN[receipt.on_return] if done else None),
        ("Method", method),
        ("Why this method", receipt.method_reason),
        ("Use of the model", _utility(receipt)),
    ]


def _evidence(receipt: Receipt) -> list[tuple[str, str]]:
    figures = [(name.replace("_", " "), _shown(value)) for name, value in receipt.figures.items()]
    hashes = [
        ("model before", receipt.learner_before),
        ("model after", receipt.learner_after),
        ("configuration", receipt.config),
        ("receipt before this one", receipt.previous),
        ("signing key", receipt.signed_by or NOT_SIGNED),
    ]
    return figures + [(label, value) for label, value in hashes if value]


def _utility(receipt: Receipt) -> str | None:
    if (utility := receipt.utility) is None:
        return None
    changed = "" if utility.changed is None else f"; for {utility.changed} of them another class is named"
    if utility.expected_changed is not None:
        changed += f", as was to be expected for {utility.expected_changed:.1f}"
    return (
        f"{100 * utility.after:.1f} % of {utility.samples} held-out samples of what stays are classified "
        f"correctly, {100 * utility.before:.1f} % before{changed}"
    )


def _deadline(receipt: Receipt) -> str | None:
    if receipt.deadline is None:
        return None
    return f"{_moment(receipt.deadline)}, {'kept' if receipt.completed <= receipt.deadline else 'missed'}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
