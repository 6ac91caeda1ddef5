"""Reads WebDataset shards, tar files whose members belong together by name, as a stream to be resumed."""

from __future__ import annotations

import glob
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.protocols import State
from streams.datasets.http_shard import open_shard, shard_name
from streams.datasets.tar_samples import SampleMembers, is_image, split_name
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource


def webdataset(
    shards: str | Sequence[str],
    *,
    class_names: Sequence[str] = (),
    name: str = "webdataset",
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> IterableSource:
    """Return a source of the samples in shards, in the order of the shards and of their members.

    shards: paths with braces, "train-{000..012}.tar" or "{a,b}.tar", or wildcards; or a list of such. Also
        http and https URLs with braces: a body that breaks off before its Content-Length is continued.
    class_names: of the integers in `.cls` members.

    Members are grouped as by the webdataset package: those that follow one another with the same path up to
    the first dot of the file's name are one sample, and that path is its id; hidden files and metadata are
    left out. The image is the first member that is a picture by its extension and has one extension only,
    else the only picture; the label is the text of `.cls` (an integer or a name), `label` (or `cls`) in
    `.json`, which may also give id, subject, domain and privacy, or the text of `.txt`. A sample is refused
    where a member comes twice, where several pictures or labels with two extensions leave open which belong
    together, and where its name is absolute or has "..". Nothing is written to disk. A shard in which the
    members of a sample are apart is a SourceError, as is a damaged one, or a remote one that cannot be read,
    when the stream comes to it. Raise ConfigError where a local shard does not exist.
    """
    paths = shard_paths([shards] if isinstance(shards, str) else shards)
    policy = policy or RecordPolicy()
    return IterableSource(
        lambda: Shards(paths, policy.max_file_bytes, tuple(class_names)),
        name=name,
        batch_size=batch_size,
        policy=policy,
    )


def shard_paths(patterns: Sequence[str]) -> list[Path | str]:
    """Return the files and URLs that the patterns name, in their order; wildcards in the order of names."""
    paths: list[Path | str] = []
    for pattern in chain.from_iterable(expand_braces(pattern) for pattern in patterns):
        if pattern.startswith(("http://", "https://")):
            paths.append(pattern)
            continue
        if "://" in pattern or pattern.startswith("pipe:"):
            raise ConfigError(
                f"{pattern!r} is neither a local file nor on the web", hint="download the shards first"
            )
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


class Shards:
    """An iterator over the samples of tar files; its position is a shard and how many of its members."""

    def __init__(
        self, paths: Sequence[Path | str], max_file_bytes: int, classes: tuple[str, ...] = ()
    ) -> None:
        self._paths, self._max_file_bytes = paths, max_file_bytes
        self._shard, self._members = 0, 0
        self._samples: Iterator[tuple[SampleMembers, int]] | None = None
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
                return parts.record()
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

    def _grouped(self, path: Path | str, skip: int) -> Iterator[tuple[SampleMembers, int]]:
        """Yield the samples of one shard, each with the number of members up to its end."""
        parts: SampleMembers | None = None
        number = 0
        complete: dict[str, bool] = {}  # of the keys so far: whether a picture was among their members
        name = shard_name(path) if isinstance(path, str) else path.name
        try:
            with _archive(path) as archive:
                for number, member in enumerate(iter(archive.next, None)):
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                    split = split_name(member.name) if member.isfile() else None
                    if split is None:
                        continue
                    key, extension = split
                    if number < skip:
                        complete[key] = complete.get(key, False) or is_image(extension)
                        continue
                    if parts is not None and parts.key != key:
                        _check_order(parts, complete, name)
                        yield parts, number
                        parts = None
                    parts = parts or SampleMembers.of(key, member.name)
                    if parts.wants(extension, member.size, self._max_file_bytes):
                        file = archive.extractfile(member)
                        parts.add(extension, file.read() if file is not None else b"")
                _check_end(archive)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise SourceError(f"shard {name!r} is damaged at member {number}: {error}") from error
        if parts is not None:
            _check_order(parts, complete, name)
            yield parts, number + 1


@contextmanager
def _archive(path: Path | str) -> Iterator[tarfile.TarFile]:
    """Open a shard, which is a file or at a URL."""
    if isinstance(path, Path):
        with tarfile.open(path) as archive:
            yield archive
    else:
        with open_shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive


def _check_order(parts: SampleMembers, complete: dict[str, bool], shard: str) -> None:
    """Note the sample. Raise SourceError where its members are not next to one another in the shard.

    complete: of the keys before, whether a picture was among their members. A key that comes again with a
    picture, as it did before, is another sample of the same name.
    """
    if not complete.get(parts.key, True) or (parts.key in complete and not parts.has_image):
        raise SourceError(
            f"shard {shard!r} has the members of sample {parts.key[:200]!r} in more than one place",
            hint="a sample's members must follow one another: pack the files again with tar --sort=name",
        )
    complete[parts.key] = parts.has_image


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise where the archive was cut off between members, which tarfile takes for its end."""
    if archive.fileobj is None:
        return
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off: the block of zeros that ends an archive is missing")
