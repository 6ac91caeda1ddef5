"""A stream with one canary among ordinary samples, and a search for it in every byte of a folder."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from streamcl.requests.label import Label

CLASSES = ("ant", "bee", "cow")
CANARY_CLASS = "kanarie-klasse"
CANARY_SUBJECT = "kanarie-person"
CANARY_DOMAIN = "kanarie-domaene"
BAD_ID = "kanarie-id-bad"
"""A record of the canary's that is refused: its picture cannot be read."""

PATTERN = bytes((251, 3, 247, 11, 241, 5))
"""Two pixels, repeated all over the canary's pictures, and nowhere else."""


def canary_id(number: int) -> str:
    """Return the id of the canary's sample at a place in the stream."""
    return f"kanarie-id-{number}"


def canary_numbers(count: int) -> list[int]:
    """Return the places of the canary's samples: every seventh record from the fifth on."""
    return list(range(4, count, 7))


def canary_ids(count: int) -> list[str]:
    """Return the ids of all the canary's samples, the refused one included."""
    return [*map(canary_id, canary_numbers(count)), BAD_ID]


def canary_picture(number: int) -> np.ndarray:
    """Return a picture whose rows are the pattern over and over, under a shade that differs by number."""
    picture = np.tile(np.frombuffer(PATTERN, np.uint8).reshape(2, 3), (24, 12, 1)).copy()
    picture[-2:] = number % 200
    return picture


def ordinary_picture(label: str, number: int) -> np.ndarray:
    """Return noise around a shade of grey that depends on the class."""
    noise = np.random.default_rng(number).integers(0, 40, (24, 24, 3))
    return (noise + 60 * (1 + CLASSES.index(label) % 3)).astype(np.uint8)


class Stream:
    """Records read by index; held-out parts bear the names of classes and domains.

    Args:
        count: records.
        until: the canary's records lie before it.
        privacy: of the canary's records.
        held_out: whether held-out parts bear its names.
        own_class: whether the canary is a class of its own.
        refused: whether one record of the canary's cannot be read.
    """

    def __init__(
        self,
        count: int = 96,
        own_class: bool = True,
        refused: bool = True,
        until: int = 10**6,
        privacy: str = "core",
        held_out: bool = True,
    ) -> None:
        self.count, self.own_class, self.refused, self.privacy = count, own_class, refused, privacy
        self.numbers = frozenset(number for number in canary_numbers(count) if number < until)
        self.holdout = {label: [self._held_out(label, k) for k in range(3)] for label in CLASSES}
        if held_out:
            self.holdout["2 " + CANARY_DOMAIN] = [self._canary(9000 + k) for k in range(3)]
        if held_out and own_class:
            self.holdout[CANARY_CLASS] = [self._canary(9100 + k) for k in range(3)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        if self.refused and index == 2:
            return {**self._canary(index), "image": b"no picture", "id": BAD_ID}
        if index in self.numbers:
            return self._canary(index)
        label = CLASSES[index * 5 % 11 % 3]
        return {
            "image": ordinary_picture(label, index),
            "label": label,
            "id": f"other-{index}",
            "subject": f"person-{index % 4}",
            "domain": f"domain-{index % 2}",
        }

    def _label(self, number: int) -> str:
        return CANARY_CLASS if self.own_class else CLASSES[number % 3]

    def _canary(self, number: int) -> dict[str, object]:
        return {
            "image": canary_picture(number),
            "label": self._label(number),
            "id": canary_id(number),
            "subject": CANARY_SUBJECT,
            "domain": CANARY_DOMAIN,
            "privacy": self.privacy,
        }

    def _held_out(self, label: str, number: int) -> dict[str, object]:
        return {
            "image": ordinary_picture(label, 5000 + number),
            "label": label,
            "id": f"held-{label}-{number}",
        }


def stream(**options: object) -> Stream:
    """Return the stream, for `source.class`."""
    return Stream(**options)  # type: ignore[arg-type]


def once(**options: object) -> Iterator[dict[str, object]]:
    """Yield the stream's records; they cannot be read again."""
    made = stream(**options)
    yield from (made[index] for index in range(len(made)))


DELAY = 20
"""Records after which a label comes in `late`."""


def late(**options: object) -> Iterator[object]:
    """Yield the stream's records without their labels, and each label some records later."""
    made = stream(**options)
    for index in range(len(made) + DELAY):
        if index < len(made):
            yield {**made[index], "label": None}
        if index >= DELAY:
            known = made[index - DELAY]
            yield Label(str(known["id"]), str(known["label"]))


class EagerDetector:
    """Reports a shift at every batch, so that thumbnails are kept, and a plateau at every third."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, loss: float) -> None:
        """Count a batch."""
        self.count += 1

    @property
    def shift(self) -> str | None:
        """A shift, always."""
        return "scripted" if self.count % 2 else None

    @property
    def plateau(self) -> str | None:
        """A plateau at every third batch."""
        return "scripted" if self.count % 3 == 0 else None

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the count."""
        self.count = state["count"]


def traces(root: Path, names: list[str], *, pixels: bool = True) -> dict[str, list[str]]:
    """Return, by file below a folder, which names it holds in any form, and "pixels" of the canary.

    A file is searched as it is, as JSON escapes text, decoded from base64 and unpacked by zlib where it holds
    such streams, and as the pages of SQLite, whose write-ahead log is a file like any other.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(each for each in root.rglob("*") if each.is_file() and not each.is_symlink()):
        hits = _hits(path, names, pixels=pixels)
        if hits:
            found[str(path.relative_to(root))] = sorted(hits)
    return found


def _hits(path: Path, names: list[str], *, pixels: bool) -> set[str]:
    content = path.read_bytes()
    forms = list(_forms(content))
    hits = {name for name in names if any(_spelled(name, form) for form in forms)}
    hits |= {name for name in names if name in path.name}
    if pixels and (any(PATTERN * 2 in form for form in forms) or _shows_canary(content)):
        hits.add("pixels")
    return hits


def _spelled(name: str, content: bytes) -> bool:
    return name.encode() in content or json.dumps(name)[1:-1].encode() in content


def _forms(content: bytes) -> Iterator[bytes]:
    """Yield the content as it is, and what its streams of zlib unpack to."""
    yield content
    start = -1
    while (start := content.find(b"\x78", start + 1)) >= 0:
        if content[start + 1 : start + 2] in {b"\x01", b"\x5e", b"\x9c", b"\xda"}:
            try:
                yield zlib.decompressobj().decompress(content[start:], 1 << 20)
            except zlib.error:
                continue
    for shift in range(3):
        spelled = base64.b64encode(b"\0" * shift + PATTERN * 4)[4:-4]
        if spelled in content:
            yield PATTERN * 4


def _shows_canary(content: bytes) -> bool:
    """Return whether the content is an image that has the canary's colours."""
    if not content.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF", b"GIF8")):
        return False
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    pattern = np.frombuffer(PATTERN, np.uint8).reshape(2, 3).astype(int)
    return bool((np.abs(image - pattern[0]).max(axis=2) < 12).mean() > 0.2)


def all_names(count: int) -> list[str]:
    """Return every name of the canary."""
    return [CANARY_CLASS, CANARY_SUBJECT, CANARY_DOMAIN, *canary_ids(count)]
