"""Reads WebDataset shards, tar files whose members belong together by name, as a stream to be resumed."""

from __future__ import annotations

import glob
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.protocols import State
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

IMAGES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jp2")
LABELS = ("cls", "json", "txt")  # the first that a sample has is used
MOST_TEXT = 2**20  # bytes of a label's member
FACTS = ("label", "id", "subject", "domain", "privacy")


def webdataset(
    shards: str | Sequence[str],
    *,
    class_names: Sequence[str] = (),
    name: str = "webdataset",
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> IterableSource:
    """Return a source of the samples in local shards, in the order of the shards and of their members.

    shards: paths with braces, "train-{000..012}.tar" or "{a,b}.tar", or wildcards; or a list of such.
    class_names: of the integers in `.cls` members.

    Members with the same path up to the first dot of the file's name are one sample, and that path is its id.
    The image is the first member that is a picture by its extension; the label is the text of `.cls` (an
    integer or a name), `label` (or `cls`) in `.json`, which may also give id, subject, domain and privacy, or
    the text of `.txt`. Nothing is written to disk; a sample with an absolute name, or one with "..", is
    refused. Raise ConfigError where a shard does not exist; a damaged shard is a SourceError when the stream
    comes to it.
    """
    paths = shard_paths([shards] if isinstance(shards, str) else shards)
    policy = policy or RecordPolicy()
    return IterableSource(
        lambda: Shards(paths, policy.max_file_bytes, tuple(class_names)),
        name=name,
        batch_size=batch_size,
        policy=policy,
    )


def shard_paths(patterns: Sequence[str]) -> list[Path]:
    """Return the files that the patterns name, in their order; wildcards in the order of names."""
    paths: list[Path] = []
    for pattern in chain.from_iterable(expand_braces(pattern) for pattern in patterns):
        if "://" in pattern or pattern.startswith("pipe:"):
            raise ConfigError(f"{pattern!r} is not a local file", hint="download the shards first")
        found = [Path(pattern)] if Path(pattern).is_file() else [Path(p) for p in sorted(glob.glob(pattern))]  # noqa: PTH207
        if not found:
            raise ConfigError(f"there is no shard {pattern!r}")
        paths += found
    if not paths:
        raise ConfigError("no shards are named", hint='shards: "train-{000..012}.tar"')
    return paths


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for.

    >>> expand_braces("{a,b}-{08..10}.tar")[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span is None:
        choices = match[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if last - first >= 1_000_000:
            raise ConfigError(f"{pattern!r} stands for more than a million shards")
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in expand_braces(before + choice + after)]


@dataclass(slots=True)
class _Members:
    """The members of one sample that are used."""

    key: str
    image: bytes | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    bad: str | None = None


class Shards:
    """An iterator over the samples of tar files; its position is a shard and how many of its members."""

    def __init__(self, paths: Sequence[Path], max_file_bytes: int, classes: tuple[str, ...] = ()) -> None:
        self._paths, self._max_file_bytes = paths, max_file_bytes
        self._shard, self._members = 0, 0
        self._samples: Iterator[tuple[_Members, int]] | None = None
        if classes:
            self.classes = classes

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> dict[str, Any] | BadRecord:
        """Return the next sample as a record; a BadRecord in its place where it cannot be one."""
        while self._shard < len(self._paths):
            if self._samples is None:
                self._samples = self._grouped(self._paths[self._shard], self._members)
            parts, members = next(self._samples, (None, 0))
            if parts is not None:
                self._members = members
                return _record(parts)
            self._shard, self._members, self._samples = self._shard + 1, 0, None
        raise StopIteration

    def shard(self, rank: int, world: int) -> Shards:
        """Return every `world`th shard from number `rank` on."""
        return Shards(self._paths[rank::world], self._max_file_bytes, tuple(getattr(self, "classes", ())))

    def state_dict(self) -> State:
        """Return the shard, and how many of its members belong to samples already returned."""
        return {"shard": self._shard, "members": self._members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position; members before it are skipped by their headers."""
        self._shard, self._members, self._samples = state["shard"], state["members"], None

    def _grouped(self, path: Path, skip: int) -> Iterator[tuple[_Members, int]]:
        """Yield the samples of one shard, each with the number of members up to its end."""
        parts: _Members | None = None
        number = 0
        try:
            with tarfile.open(path) as archive:
                for number, member in enumerate(iter(archive.next, None)):
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                    if number < skip or not member.isfile():
                        continue
                    key, extension = split_name(member.name)
                    if parts is not None and parts.key != key:
                        yield parts, number
                        parts = None
                    if parts is None:
                        name = PurePosixPath(member.name)
                        leaves = name.is_absolute() or ".." in name.parts or "\\" in member.name
                        bad = f"member {member.name[:200]!r} points outside of its archive"
                        parts = _Members(key, bad=bad if leaves else None)
                    self._keep(archive, member, extension, parts)
                _check_end(archive)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise SourceError(f"shard {path.name!r} is damaged at member {number}: {error}") from error
        if parts is not None:
            yield parts, number + 1

    def _keep(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str, parts: _Members
    ) -> None:
        is_image = extension in IMAGES and parts.image is None
        if parts.bad or not (is_image or extension in LABELS):
            return
        most = self._max_file_bytes if is_image else MOST_TEXT
        if member.size > most:
            parts.bad = f"member .{extension} has {member.size} bytes; {most} are allowed"
            return
        file = archive.extractfile(member)
        content = file.read() if file is not None else b""
        if is_image:
            parts.image = content
        else:
            parts.texts[extension] = content


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise where the archive was cut off between members, which tarfile takes for its end."""
    if archive.fileobj is None:
        return
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off: the block of zeros that ends an archive is missing")


def split_name(name: str) -> tuple[str, str]:
    """Return the sample's key and the last extension in lower case.

    >>> split_name("dir/a.b.JPG")
    ('dir/a', 'jpg')
    """
    folder, _, file = name.rpartition("/")
    base, _, extensions = file.partition(".")
    return f"{folder}/{base}" if folder else base, extensions.rpartition(".")[2].lower()


def _record(parts: _Members) -> dict[str, Any] | BadRecord:
    label = f"sample {parts.key[:200]!r}"
    if parts.bad:
        return BadRecord(f"{label}: {parts.bad}")
    if parts.image is None:
        return BadRecord(f"{label} has no image member", hint=f"one of .{', .'.join(IMAGES)}")
    try:
        return {"image": parts.image, "id": parts.key, "label": None} | _facts(parts.texts)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"{label} has an unreadable label: {error}")


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
        text = texts["cls"].decode().strip()
        facts["label"] = int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else text
    elif "txt" in texts and "label" not in facts:
        facts["label"] = texts["txt"].decode().strip()
    return facts
