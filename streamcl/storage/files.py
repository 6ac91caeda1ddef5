"""All writes to durable storage: files and folders appear complete or not at all, logs can be truncated."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from streamcl.errors import ConfigError

TEMPORARY = ".tmp-"
"""Prefix of everything that is not yet, or no longer, part of a run directory. `sweep` removes it."""


class Disk:
    """The calls that change what a crash leaves behind, one method each, so that a test can fail any of them.

    Raises OSError as the system does. `streamcl.testing.FaultyDisk` is the one that fails on purpose.
    """

    def create(self, path: Path) -> io.FileIO:
        """Open a file that must not exist yet. Its owner can read it under any umask."""
        handle = io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")
        _let_owner_in(path, 0o600)
        return handle

    def append(self, path: Path) -> io.FileIO:
        """Open a log, no link, at its end; it is created, readable to its owner, where it is missing."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = io.FileIO(os.open(path, flags, 0o666), "ab")
        _let_owner_in(path, 0o600)
        return handle

    def write(self, handle: io.FileIO, data: bytes | memoryview) -> int:
        """Hand bytes to the system; return how many it took, which may be fewer than given."""
        return handle.write(data) or 0

    def fsync(self, handle: io.FileIO) -> None:
        """Sync the file: what was written through the handle survives a power loss."""
        os.fsync(handle.fileno())

    def truncate(self, handle: io.FileIO, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(handle.fileno(), size)

    def mkdir(self, folder: Path) -> None:
        """Make one folder whose owner can use it under any umask."""
        folder.mkdir()
        _let_owner_in(folder, 0o700)

    def replace(self, old: Path, new: Path) -> None:
        """Rename within one file system, over whatever has the new name."""
        old.replace(new)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name, which must not exist yet, within one file system."""
        new.hardlink_to(old)

    def unlink(self, path: Path) -> None:
        """Remove one file."""
        path.unlink()

    def rmdir(self, folder: Path) -> None:
        """Remove one empty folder."""
        folder.rmdir()

    def fsync_folder(self, folder: Path) -> None:
        """Sync the folder: the names in it survive a power loss."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()
"""The disk of the system, which every caller uses but a test."""


def atomic_write(path: Path, data: bytes, *, disk: Disk = DISK) -> None:
    """Replace the content of `path` by `data`; after a crash at any point it has the old content or the new.

    Raise OSError. An error before the rename leaves the old content. An error of the last step, the sync of
    the folder, leaves the new one, which may not survive a power loss.
    """
    with replace_content(path, disk=disk) as handle:
        write_all(handle, data, disk=disk)


@contextlib.contextmanager
def replace_content(path: Path, *, disk: Disk = DISK) -> Iterator[io.FileIO]:
    """Yield a new file that takes the place of `path` when the block has ended, synced like `atomic_write`.

    Where the block raises OSError, or the process dies in it, `path` is as it was.
    """
    temporary = temporary_path(path)
    try:
        with disk.create(temporary) as handle:
            yield handle
            disk.fsync(handle)
        disk.replace(temporary, path)
    except OSError:
        discard(temporary, disk=disk)
        raise
    disk.fsync_folder(path.parent)


def read_limited(path: Path, limit: int) -> bytes:
    """Return the content of a file; nothing of one that has more than `limit` bytes. Raise OSError."""
    return path.read_bytes() if path.stat().st_size <= limit else b""


def write_new(path: Path, data: bytes | memoryview, *, disk: Disk = DISK) -> None:
    """Write and sync a file that did not exist. Not atomic by itself: for files in a temporary folder."""
    with disk.create(path) as handle:
        write_all(handle, data, disk=disk)
        disk.fsync(handle)


def write_all(handle: io.FileIO, data: bytes | memoryview, *, disk: Disk = DISK) -> None:
    """Write every byte; the system may take them in portions (a disk that fills up takes a short one)."""
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(handle, rest) :]


def commit_folder(path: Path, fill: Callable[[Path], None], *, disk: Disk = DISK) -> None:
    """Make the folder `path`, which must not exist, with the files that `fill` writes into it, or nothing.

    `fill` syncs these files (`write_new`). After an error, of the last sync too, the folder is removed as far
    as the disk allows and the error is raised.
    """
    temporary = temporary_path(path)
    try:
        disk.mkdir(temporary)
        fill(temporary)
        disk.fsync_folder(temporary)
        if path.exists():
            raise FileExistsError(f"{path} already exists")
        disk.replace(temporary, path)
    except OSError:
        discard(temporary, disk=disk)
        raise
    try:
        disk.fsync_folder(path.parent)
    except OSError:
        discard(path, disk=disk)
        raise


def remove(path: Path, *, disk: Disk = DISK) -> None:
    """Remove a file or a folder durably; a crash leaves it complete or no longer under its name.

    To this end a folder is renamed to a temporary first.
    """
    gone = path
    if is_folder(path):
        gone = temporary_path(path)
        disk.replace(path, gone)
        disk.fsync_folder(path.parent)  # the name is gone before any of the content is
    _remove_tree(gone, disk)
    disk.fsync_folder(path.parent)


def discard(path: Path, *, disk: Disk = DISK) -> None:
    """Remove the remains of a failed write as far as the disk still works; `sweep` tries again later."""
    with contextlib.suppress(OSError):
        if is_folder(path) and not is_temporary(path):
            temporary = temporary_path(path)
            disk.replace(path, temporary)
            path = temporary
        _remove_tree(path, disk)


def sweep(folder: Path, *, disk: Disk = DISK) -> list[Path]:
    """Remove the temporaries that crashes left in the folder, and return them; only for the lock's holder."""
    if not folder.is_dir():
        return []
    strays = sorted(path for path in folder.iterdir() if is_temporary(path))
    for path in strays:
        _remove_tree(path, disk)
    if strays:
        disk.fsync_folder(folder)
    return strays


def make_folder(folder: Path, *, disk: Disk = DISK) -> None:
    """Make the folder and the ones above it durably, where they are missing."""
    if folder.is_dir():
        return
    make_folder(folder.parent, disk=disk)
    try:
        disk.mkdir(folder)
    except FileExistsError:  # another process has made it meanwhile
        if not folder.is_dir():
            raise
    disk.fsync_folder(folder.parent)


def make_owner_folder(folder: Path, *, disk: Disk = DISK) -> None:
    """Make the folder for its owner alone, where it is missing; one that is there keeps its mode."""
    if not folder.is_dir():
        make_folder(folder.parent, disk=disk)
        disk.mkdir(folder)
        folder.chmod(0o700)
        disk.fsync_folder(folder.parent)


def links_below(folder: Path) -> list[Path]:
    """Return every symbolic link in a folder and in the folders in it; none is followed."""
    found = []
    for path, folders, names in os.walk(folder):
        found += [Path(path, name) for name in (*folders, *names) if Path(path, name).is_symlink()]
    return sorted(found)


def ensure_writable(folder: Path, *, disk: Disk = DISK) -> None:
    """Make the folder, for its owner alone, and write and remove a probe in it, to fail before a run does.

    Raise ConfigError with the system's reason (read-only, full, not a folder, no permission).
    """
    try:
        make_owner_folder(folder, disk=disk)
        probe = temporary_path(folder / "probe")
        write_new(probe, b"streamcl", disk=disk)
        with contextlib.suppress(FileNotFoundError):  # another process sweeps the folder
            disk.unlink(probe)
        disk.fsync_folder(folder)
    except OSError as error:
        hint = "name a run directory on a writable file system with free space"
        raise ConfigError(f"{folder} cannot be written to: {error.strerror or error}", hint=hint) from error


def open_append(path: Path, *, disk: Disk = DISK) -> io.FileIO:
    """Open a log at its end, unbuffered, and make its name durable where it is new."""
    new = not path.exists()
    handle = disk.append(path)
    if new:
        disk.fsync_folder(path.parent)
    return handle


def truncate(path: Path, size: int, *, disk: Disk = DISK) -> None:
    """Cut a log back to `size` bytes, durably. Raise ValueError where it is shorter."""
    with io.FileIO(path, "r+b") as handle:
        found = os.fstat(handle.fileno()).st_size
        if found < size:
            raise ValueError(f"{path} has {found} bytes, fewer than the {size} to keep")
        if found > size:
            disk.truncate(handle, size)
            disk.fsync(handle)


def temporary_path(path: Path) -> Path:
    """Return a fresh temporary name in the same folder, thus on the same file system, made of the path's."""
    return path.with_name(f"{TEMPORARY}{path.name[:40]}-{os.getpid()}-{secrets.token_hex(4)}")


def is_temporary(path: Path) -> bool:
    """Return whether the name is one that `sweep` removes."""
    return path.name.startswith(TEMPORARY)


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder and no symlink, so that removal never leaves the run."""
    return path.is_dir() and not path.is_symlink()


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user can still write on the folder's file system."""
    return shutil.disk_usage(folder).free


def _let_owner_in(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)


def _remove_tree(path: Path, disk: Disk) -> None:
    """Remove a file, or a folder with its content."""
    if not is_folder(path):
        disk.unlink(path)
        return
    for child in sorted(path.iterdir()):
        _remove_tree(child, disk)
    disk.rmdir(path)
