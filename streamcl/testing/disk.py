"""A disk that fails on purpose: at its Nth call, by an error, a short write, a kill, or a loss of power."""

# ruff: noqa: D102 - Disk documents each call

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

from streamcl.storage.files import Disk

Fault: TypeAlias = Literal["eio", "enospc", "short", "kill", "drop_unsynced"]


class PowerLoss(BaseException):
    """The machine went off. Not an Exception: nothing in the tested code gets to tidy up after it."""


class FaultyDisk(Disk):
    """The real disk until call number `fail_at` (the first is 1; 0 is never), then

    eio            that call raises "input/output error" and has no effect; the calls after it work
    enospc         that call and every later one that needs space raise "no space left"; removals work
    short          that write takes half of the bytes, then as enospc; on other calls the same as enospc
    kill           SIGKILL, in a write after half of the bytes; only in a process that may die
    drop_unsynced  PowerLoss is raised after `lose_power`

    A sync is taken for granted, not carried out, so it costs nothing. `calls` says what was called so far;
    `survivors` decides what of the unsynced a loss of power takes: None takes all of it, a seed some.
    """

    def __init__(self, fail_at: int = 0, kind: Fault = "eio", *, survivors: int | None = None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._kind = kind
        self._full = False
        self._pending = _Pending()
        self._chance = None if survivors is None else random.Random(survivors)

    @property
    def fired(self) -> bool:
        """Whether the call that was to fail has been made."""
        return 0 < self._fail_at <= len(self.calls)

    def fail_later(self, calls: int, kind: Fault) -> None:
        """Let the call after so many fail in this way; 1 is the next."""
        self._fail_at, self._kind = len(self.calls) + calls, kind

    def repair(self) -> None:
        """Let every later call work: there is space again."""
        self._fail_at, self._full = 0, False

    def lose_power(self) -> None:
        """Take back bytes and names that no sync has made durable: all of them, or those that a seed chose.

        Bytes go from a file's end; names of one folder go latest first, as a journalling file system does.
        Bytes that a `truncate` cut off do not come back.
        """
        self._pending.lose(self._chance)

    def create(self, path: Path) -> io.FileIO:
        self._call("create", path)
        handle = super().create(path)
        self._pending.name("create", path)
        return handle

    def append(self, path: Path) -> io.FileIO:
        self._call("append", path)
        new = not path.exists()
        handle = super().append(path)
        if new:
            self._pending.name("create", path)
        return handle

    def write(self, handle: io.FileIO, data: bytes | memoryview) -> int:
        half = memoryview(data)[: len(data) // 2]
        self._call("write", handle.fileno(), before=lambda: super(FaultyDisk, self).write(handle, half))
        self._pending.bytes(handle)
        if self._kind == "short" and len(self.calls) == self._fail_at:
            return super().write(handle, half)
        return super().write(handle, data)

    def fsync(self, handle: io.FileIO) -> None:
        self._call("fsync", handle.fileno(), space=False)
        self._pending.sync_bytes(handle)

    def truncate(self, handle: io.FileIO, size: int) -> None:
        self._call("truncate", handle.fileno(), space=False)
        super().truncate(handle, size)

    def mkdir(self, folder: Path) -> None:
        self._call("mkdir", folder)
        super().mkdir(folder)
        self._pending.name("mkdir", folder)

    def replace(self, old: Path, new: Path) -> None:
        self._call("replace", new)
        backup = new.read_bytes() if new.is_file() else None
        super().replace(old, new)
        self._pending.rename(old, new, backup)

    def link(self, old: Path, new: Path) -> None:
        self._call("link", new)
        super().link(old, new)
        self._pending.name("create", new)

    def unlink(self, path: Path) -> None:
        self._call("unlink", path, space=False)
        backup = path.read_bytes() if path.is_file() else b""
        super().unlink(path)
        self._pending.name("unlink", path, backup)

    def rmdir(self, folder: Path) -> None:
        self._call("rmdir", folder, space=False)
        super().rmdir(folder)
        self._pending.name("rmdir", folder)

    def fsync_folder(self, folder: Path) -> None:
        self._call("fsync_folder", folder, space=False)
        self._pending.sync_names(folder)

    def _call(
        self, what: str, where: Path | int, *, space: bool = True, before: Callable[[], object] | None = None
    ) -> None:
        """Note a call and let it fail when its turn has come; `before` is what a kill lets happen first."""
        self.calls.append(f"{what} {where.name if isinstance(where, Path) else ''}".strip())
        if self._full and space:
            _raise(errno.ENOSPC)
        if len(self.calls) != self._fail_at:
            return
        match self._kind:
            case "eio":
                _raise(errno.EIO)
            case "enospc" | "short":
                self._full = True
                if not (what == "write" and self._kind == "short"):
                    _raise(errno.ENOSPC)
            case "kill":
                if before is not None:
                    before()
                os.kill(os.getpid(), signal.SIGKILL)
            case "drop_unsynced":
                self.lose_power()
                raise PowerLoss


@dataclass(frozen=True)
class _Name:
    """A change of a folder's names that can be reverted. `old` is where a rename came from."""

    kind: Literal["create", "mkdir", "unlink", "rmdir", "rename"]
    path: Path
    old: Path | None = None
    backup: bytes | None = None

    def revert(self) -> None:
        match self.kind:
            case "create":
                self.path.unlink(missing_ok=True)
            case "mkdir":
                shutil.rmtree(self.path, ignore_errors=True)
            case "unlink":
                self.path.write_bytes(self.backup or b"")
            case "rmdir":
                self.path.mkdir()
            case "rename":
                assert self.old is not None
                self.path.rename(self.old)
                if self.backup is not None:
                    self.path.write_bytes(self.backup)

    def moved(self, old: Path, new: Path) -> _Name:
        """Return the same change after a folder above it was renamed."""

        def follow(path: Path) -> Path:
            return new / path.relative_to(old) if old in path.parents else path

        return replace(self, path=follow(self.path), old=self.old and follow(self.old))


class _Pending:
    """The changes that a loss of power takes: names in the order of change, bytes past the last sync."""

    def __init__(self) -> None:
        self._names: list[_Name] = []
        self._bytes: dict[int, tuple[int, int]] = {}  # inode -> (a descriptor of our own, durable size)

    def name(
        self, kind: Literal["create", "mkdir", "unlink", "rmdir"], path: Path, backup: bytes | None = None
    ) -> None:
        self._names.append(_Name(kind, path, backup=backup))

    def rename(self, old: Path, new: Path, backup: bytes | None) -> None:
        self._names = [change.moved(old, new) for change in self._names]
        self._names.append(_Name("rename", new, old, backup))

    def bytes(self, handle: io.FileIO) -> None:
        facts = os.fstat(handle.fileno())
        if facts.st_ino not in self._bytes:
            self._bytes[facts.st_ino] = (os.dup(handle.fileno()), facts.st_size)

    def sync_bytes(self, handle: io.FileIO) -> None:
        known = self._bytes.pop(os.fstat(handle.fileno()).st_ino, None)
        if known is not None:
            os.close(known[0])

    def sync_names(self, folder: Path) -> None:
        self._names = [change for change in self._names if change.path.parent != folder]

    def lose(self, chance: random.Random | None) -> None:
        for descriptor, durable in self._bytes.values():
            written = os.fstat(descriptor).st_size
            kept = durable if chance is None else chance.randint(min(durable, written), written)
            os.ftruncate(descriptor, min(kept, written))
            os.close(descriptor)
        folders = {change.path.parent for change in self._names}
        kept_of = {
            folder: 0 if chance is None else self._survivors(folder, chance) for folder in sorted(folders)
        }
        for index in reversed(range(len(self._names))):
            change = self._names[index]
            rank = sum(other.path.parent == change.path.parent for other in self._names[:index])
            if rank >= kept_of.get(change.path.parent, 0):
                self._revert(index)
        self._names, self._bytes = [], {}

    def _survivors(self, folder: Path, chance: random.Random) -> int:
        return chance.randint(0, sum(change.path.parent == folder for change in self._names))

    def _revert(self, index: int) -> None:
        change = self._names[index]
        if change.path.parent.is_dir():
            change.revert()
        if change.kind == "rename" and change.old is not None:
            self._names[:index] = [other.moved(change.path, change.old) for other in self._names[:index]]


def _raise(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
