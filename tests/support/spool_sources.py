"""A camera that gives each picture once, ever: what a run did not put into its spool is lost."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_sources import CLASSES, picture
from PIL import Image

from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_record import value_of

CANARY = b"\xffthe face of p1\xfe"


def record(number: int) -> dict[str, Any]:
    """A picture as a file's bytes; the canary is behind those of the subject p1."""
    label = CLASSES[number % 4]
    file = io.BytesIO()
    Image.fromarray(picture(label, number)).save(file, "png")
    subject = f"p{number % 3}"
    data = file.getvalue() + (CANARY if subject == "p1" else b"")
    return {"image": data, "label": label, "id": f"{subject}-{number:06d}", "subject": subject}


class Camera:
    """A generator that counts in a file what it has given, before it gives it.

    A file "limit" beside it says up to which number it gives them for now.
    """

    def __init__(self, file: str, records: int) -> None:
        self.file, self.records = Path(file), records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (number := int(self.file.read_text()) if self.file.exists() else 0) < self.records:
            while number >= self._limit():
                time.sleep(0.05)
            self.file.with_suffix(".part").write_text(str(number + 1))
            self.file.with_suffix(".part").rename(self.file)
            yield record(number)

    def _limit(self) -> int:
        limit = self.file.with_name("limit")
        return int(limit.read_text()) if limit.exists() else self.records


def again(file: str) -> list[dict[str, Any]]:
    """The records with the ids in a file."""
    return [record(int(name.rpartition("-")[2])) for name in json.loads(Path(file).read_text())]


def spooled_ids(folder: Path) -> list[str]:
    """The ids in a spool, in order."""
    spool = Spool(folder, Retention())
    spool.open()
    values = [value_of(each) for each in spool.log.find(lambda _: True)]
    spool.close()
    return [each["id"] for each in values]
