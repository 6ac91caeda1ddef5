"""The receipts in a run directory: canonical JSON, each chained to the one before, with a page beside it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from streamcl.errors import ForgettingError
from streamcl.forgetting.receipts.page import write_page
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.storage import files, hash_chain
from streamcl.storage.files import Disk

RECEIPTS, AUDITS = "receipts", "audits"
"""The folders' names in a run directory."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ReceiptArchive:
    """Writes the receipts of a run; each link of the chains is read once, not again for each receipt."""

    def __init__(self, folder: Path, *, disk: Disk = files.DISK) -> None:
        self._folder, self._disk = folder, disk
        self._receipts = hash_chain.ChainHead(folder / RECEIPTS, "receipt")
        self._audits = hash_chain.ChainHead(folder / AUDITS, "audit")

    def write(self, receipt: Receipt) -> Path:
        """Chain a receipt to the newest one and write it atomically, its page first; one that exists stays.

        It names the newest audit, so that no audit can be removed unnoticed. Return its path.
        """
        path = receipt_path(self._folder, receipt.request, receipt.attempt)
        if path.exists():
            return path
        files.make_folder(path.parent, disk=self._disk)
        verify = f"streamcl verify {RECEIPTS}/{path.name}"
        receipt = receipt.model_copy(update={"verify": verify, "audits": self._newest_audit()})
        body = self._receipts.next_link(receipt.to_json())
        write_page(path, Receipt.from_json(body), disk=self._disk)
        hash_chain.write_link(path, body, disk=self._disk)
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
    if PLAIN.fullmatch(request):
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
    return Receipt.from_json(hash_chain.read_link(path, "receipt"))


def read_receipts(folder: Path) -> list[tuple[Path, Receipt]]:
    """Return every receipt of a run in the order of the chain. Raise ForgettingError at a broken link."""
    chain = hash_chain.read_links(folder / RECEIPTS, "receipt")
    return [(path, Receipt.from_json(content)) for path, content in chain]


def read_audits(folder: Path) -> hash_chain.Chain:
    """Return every saved audit of a run in the order of its chain. Raise ForgettingError at a broken link."""
    return hash_chain.read_links(folder / AUDITS, "audit")
