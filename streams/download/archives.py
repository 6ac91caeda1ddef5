"""Unpacks downloaded archives so that nothing lands outside the folder, and the folder appears whole."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from streamcl.errors import SourceError

MAX_COMPRESSION_RATIO = 100
"""Unpacked bytes for each packed one, at most; pictures are compressed already, text some ten times."""

ALWAYS_ALLOWED = 64 << 20
"""Unpacked bytes of an archive of any size."""


def refuse_bomb(archive: Path, unpacked: int) -> None:
    """Raise SourceError where an archive says that it unpacks to far more bytes than it has."""
    limit = MAX_COMPRESSION_RATIO * archive.stat().st_size + ALWAYS_ALLOWED
    if unpacked > limit:
        raise SourceError(
            f"{archive} unpacks to {unpacked} bytes, more than the {limit} that are allowed for its size",
            hint="do not trust this archive; where you made it, unpack it yourself",
        )


def extract(archive: Path, folder: Path) -> Path:
    """Unpack a .tar, .tar.gz, .tgz or .zip into `folder`, which must not be there yet.

    Raise SourceError for members that are links or devices, are absolute, or climb with `..`, and for an
    archive that unpacks to far more than its size (see `refuse_bomb`). A crash leaves `<folder>.partial`,
    which the next attempt replaces.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, partial)
        else:
            _untar(archive, partial)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        hint = f"delete {archive} and fetch again"
        raise SourceError(f"{archive} cannot be unpacked: {error}", hint=hint) from error
    partial.replace(folder)
    return folder


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        _check_names(archive, file.namelist())
        refuse_bomb(archive, sum(info.file_size for info in file.infolist()))
        for info in file.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _refused(archive, info.filename, "is a link")
        file.extractall(folder)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _check_names(archive, [member.name for member in members])
        refuse_bomb(archive, sum(member.size for member in members))
        for member in members:
            if not (member.isfile() or member.isdir()):
                raise _refused(archive, member.name, "is neither a file nor a folder")
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later: also drops owners and odd modes
            file.extractall(folder, members, filter="data")
        else:
            file.extractall(folder, members)


def _check_names(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0:1]:
            raise _refused(archive, name, "leaves the folder it is unpacked into")


def _refused(archive: Path, name: str, why: str) -> SourceError:
    return SourceError(
        f"{archive}: the member {name!r} {why}; nothing was unpacked", hint="do not trust this archive"
    )
