"""One process at a time in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from streamcl.errors import ConfigError, RunBusy

LOCK = "lock"
"""The file's name. It stays after a run: a lock file that is removed can be locked twice."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a run directory; `started` in seconds since the epoch."""

    pid: int
    host: str
    started: float

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, running since {began}"


class RunLock:
    """Holds a run directory for this process, by `flock`: the system lets go when the process dies, however.

    So a lock that a crash left is no obstacle, and nobody has to guess whether a process id is still the
    same process. A child that was forked (a loader's worker) does not hold it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises RunBusy, naming the holder, where another process has it, ConfigError where it cannot be."""
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be locked: {error.strerror}") from error
        if not _locked(descriptor):
            os.close(descriptor)
            raise _busy(self._path)
        self._descriptor = descriptor
        self._sign()
        _let_go_after_fork(self)

    def release(self) -> None:
        """Let the next process in. Releasing twice is harmless."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            self.close()

    def close(self) -> None:
        """Close this process's copy of the lock, which leaves it to those who share it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _sign(self) -> None:
        assert self._descriptor is not None
        holder = LockHolder(os.getpid(), socket.gethostname(), time.time())
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(holder)).encode(), 0)


def holder_of(run_dir: Path) -> LockHolder | None:
    """Who holds the run directory now; None where nobody does. Changes nothing and never waits.

    Where somebody holds it whose signature cannot be read, the pid is 0.
    """
    path = run_dir / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # never locked, or nothing that could be
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _signature(path)
    else:
        return None
    finally:
        os.close(descriptor)


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()
_ONCE: list[bool] = []


def _let_go_after_fork(lock: RunLock) -> None:
    """A flock belongs to every process that shares the open file, so a worker would outlive its parent's."""
    _HELD.add(lock)
    if not _ONCE:
        _ONCE.append(True)
        os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    for lock in list(_HELD):
        lock.close()


def _locked(descriptor: int) -> bool:
    """Tries for a tenth of a second, since `holder_of` in another process takes the lock for a moment."""
    for attempt in range(5):
        if attempt:
            time.sleep(0.025)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _busy(path: Path) -> RunBusy:
    holder = _signature(path)
    return RunBusy(
        f"the run directory {path.parent} is in use by {holder}",
        hint=f"wait for it, stop it (kill {holder.pid}), or name another run directory",
    )


def _signature(path: Path) -> LockHolder:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return LockHolder(**json.loads(path.read_bytes()[:4096]))
    return LockHolder(0, "an unknown host", 0.0)
