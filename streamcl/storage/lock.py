"""A lock that lets one process at a time work in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from streamcl.errors import ConfigError, RunBusy

LOCK = "lock"
"""The file's name. It stays after a run: a lock file that is removed can be locked twice."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that holds a run directory; `started` in seconds since the epoch."""

    pid: int
    host: str
    started: float

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, running since {began}"


class RunLock:
    """Holds a run directory for this process by filelock's `flock`, which the system releases when it dies.

    So a lock is never left behind by a crash. A forked child (a loader's worker) does not hold it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK
        # A tenth of a second, since `holder_of` in another process takes the lock for a moment.
        self._lock = FileLock(
            self._path,
            timeout=0.1,
            poll_interval=0.025,
            thread_local=False,
            preserve_lock_file=True,
            on_acquired=self._sign,
        )

    def acquire(self) -> None:
        """Take the lock. Raise RunBusy, naming the holder, or ConfigError where no file can be locked."""
        if self._lock.is_locked:
            return
        try:
            self._path.parent.stat()  # filelock would make a folder that is missing
            self._lock.acquire()
        except Timeout:
            holder = _signature(self._path)
            hint = f"wait for it, stop it (kill {holder.pid}), or name another run directory"
            message = f"the run directory {self._path.parent} is in use by {holder}"
            raise RunBusy(message, hint=hint) from None
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be locked: {error.strerror}") from error

    def release(self) -> None:
        """Release the lock. Releasing twice is harmless."""
        if self._lock.is_locked:
            os.ftruncate(self._descriptor, 0)
            self._lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _sign(self, descriptor: int) -> None:
        self._descriptor = descriptor
        holder = LockHolder(os.getpid(), socket.gethostname(), time.time())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def holder_of(run_dir: Path) -> LockHolder | None:
    """Return the holder of the run directory, None where there is none; change nothing, never wait.

    The pid is 0 where the holder's signature cannot be read.
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


def _signature(path: Path) -> LockHolder:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return LockHolder(**json.loads(path.read_bytes()[:4096]))
    return LockHolder(0, "an unknown host", 0.0)
