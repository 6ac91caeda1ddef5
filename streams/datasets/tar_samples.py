"""Groups the members of a WebDataset shard into samples, and finds the image and the label of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from streamcl.errors import BadRecord
from streams.user.images import image_suffixes

LABELS = ("cls", "json", "txt")  # the first that a sample has is used
FACTS = ("label", "id", "subject", "domain", "privacy")
MAX_TEXT_BYTES = 2**20  # bytes of a label's member
MAX_IMAGES_PER_SAMPLE = 16  # of one sample; more are samples whose names have been cut at a dot
_ONE_KEY = (
    "a sample's name ends at its first dot, as in the webdataset package: rename x_0.5.png to x_0-5.png"
)


def split_name(name: str) -> tuple[str, str] | None:
    """Return the sample's key and the rest of the name in lower case; None for a member of no sample.

    Like the webdataset package, leave out members whose name has no dot or begins with one (.DS_Store, the
    ._ files of macOS) and those of metadata (__index__).

    >>> split_name("dir/a.b.JPG"), split_name("dir/._a.jpg"), split_name("__meta__.json")
    (('dir/a', 'b.jpg'), None, None)
    """
    folder, _, file = name.rpartition("/")
    base, dot, extension = file.partition(".")
    if not base or not dot or re.match(r"__[^/]*__($|/|\.)", name):
        return None
    return f"{folder}/{base}" if folder else base, extension.lower()


def is_image(extension: str) -> bool:
    """Return whether a member with this extension, or with several, is a picture.

    >>> is_image("seg.png"), is_image("cls")
    (True, False)
    """
    return f".{extension.rpartition('.')[2]}" in image_suffixes()


@dataclass(slots=True)
class SampleMembers:
    """The members of one sample that are used: pictures and texts, by the part of the name after the key.

    bad: why the sample is refused, once that is known.
    """

    key: str
    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    bad: str | None = None
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, key: str, name: str) -> SampleMembers:
        """Return the sample that begins with the member `name`; it is bad where that leaves the archive."""
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts or "\\" in name
        return cls(key, bad=f"member {name[:200]!r} points outside of its archive" if leaves else None)

    def wants(self, extension: str, size: int, max_file_bytes: int) -> bool:
        """Note the member; return whether its content is to be read."""
        if extension in self.names:
            self.refuse(f"has the member .{extension} twice, so which label belongs to which picture is open")
        self.names.add(extension)
        kind = extension.rpartition(".")[2]
        picture = is_image(extension)
        if self.bad or not (picture or kind in LABELS):
            return False
        most = max_file_bytes if picture else MAX_TEXT_BYTES
        if size > most:
            self.refuse(f"member .{extension} has {size} bytes; {most} are allowed")
        elif picture and len(self.images) == MAX_IMAGES_PER_SAMPLE:
            self.refuse(f"has more than {MAX_IMAGES_PER_SAMPLE} pictures; {_ONE_KEY}")
        return not self.bad

    def add(self, extension: str, content: bytes) -> None:
        """Keep the content of a member that is wanted."""
        kept = self.images if is_image(extension) else self.texts
        kept[extension] = content

    def refuse(self, reason: str) -> None:
        """Mark the sample as bad, for the first reason, and drop its contents."""
        self.bad = self.bad or reason
        self.images.clear()
        self.texts.clear()

    @property
    def has_image(self) -> bool:
        """Whether one of the members is a picture."""
        return any(map(is_image, self.names))

    def record(self) -> dict[str, Any] | BadRecord:
        """Return the sample as a record; a BadRecord in its place where it cannot be one."""
        label = f"sample {self.key[:200]!r}"
        if self.bad:
            return BadRecord(f"{label}: {self.bad}")
        if not self.images:
            return BadRecord(
                f"{label} has no image member", hint=f"one of {', '.join(sorted(image_suffixes()))}"
            )
        try:
            which = self._own_image()
            facts = _facts(self._own_texts(which))
        except BadRecord as bad:
            return bad
        except (ValueError, RecursionError) as error:
            return BadRecord(f"{label} has an unreadable label: {error}")
        return {"image": self.images[which], "id": self.key, "label": None} | facts

    def _own_image(self) -> str:
        """Return the picture without a second dot in its name, else the only one. Raise BadRecord."""
        names = list(self.images)
        plain = [name for name in names if "." not in name]
        if not plain and len(names) > 1:
            found = ", ".join(f".{name}" for name in names[:5])
            raise BadRecord(f"sample {self.key[:200]!r} has several pictures: {found[:200]}", hint=_ONE_KEY)
        return (plain or names)[0]

    def _own_texts(self, image: str) -> dict[str, bytes]:
        """Return the texts that belong to the picture: of the whole sample, or with the picture's name."""
        own, foreign = dict[str, bytes](), list[str]()
        middle = image.rpartition(".")[0]
        for name in sorted(self.texts, key=lambda name: "." in name):
            before, _, kind = name.rpartition(".")
            if before in {"", middle}:
                own.setdefault(kind, self.texts[name])
            else:
                foreign.append(name)
        if foreign and not own:
            raise BadRecord(
                f"sample {self.key[:200]!r}: .{foreign[0]} does not belong to .{image}", hint=_ONE_KEY
            )
        return own


def _facts(texts: Mapping[str, bytes]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "json" in texts:
        given = json.loads(texts["json"])
        if isinstance(given, dict):
            facts = {key: given[key] for key in FACTS if key in given}
            facts |= {"label": given["cls"]} if "cls" in given and "label" not in given else {}
        else:
            facts = {"label": given}
    if "cls" in texts:
        text = _text(texts["cls"])
        facts["label"] = int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else text
    elif "txt" in texts and "label" not in facts:
        facts["label"] = _text(texts["txt"])
    return facts


def _text(content: bytes) -> str:
    """Return a text without blanks around it, nor the byte order mark that editors of Windows write."""
    return content.decode("utf-8-sig").strip()
