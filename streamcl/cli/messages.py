"""The log messages of streamcl and streams on the command line: they go to stderr, one a line."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from streamcl.cli.terminal import echo, one_line
from streamcl.errors import CheckpointError, ConfigError, StreamclError, cause_of


class _ToStderr(logging.Handler):
    """Writes to the present stderr, which a test or a caller may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(one_line(self.format(record)), err=True)


DEBUG = "--debug"

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
"""Error numbers of a disk that is full or fails."""
FOLDER_ERRORS = {errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM}
"""Error numbers of a run directory that somebody else has changed."""

LOGGERS = ("streamcl", "streams")
"""The loggers of the two packages."""


@contextmanager
def show_messages(prefix: str = "streamcl: ") -> Iterator[None]:
    """Write every message of level INFO and above to stderr while the block runs, and to no other handler."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    with ExitStack() as stack:
        for name in LOGGERS:
            stack.enter_context(_only_handler(logging.getLogger(name), handler))
        yield


@contextmanager
def _only_handler(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a user's module may have given the root a handler: each message comes once
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def silence_messages() -> None:
    """Write nothing outside `show_messages`, not even warnings, which logging would send to stderr."""
    for logger in map(logging.getLogger, LOGGERS):
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def report_error(error: Exception) -> int:
    """Print an error of any kind as `print_error` does; return the exit code of a command that it ends."""
    if isinstance(error, StreamclError):
        print_error(error)
        return error.exit_code
    # of the machine, of streamcl, or of a user's part, whose place is of use
    hint = None if isinstance(error, OSError | MemoryError) else "--debug shows where"
    print_error(StreamclError(cause_of(error), hint=hint))
    return 1


def print_error(error: StreamclError) -> None:
    """Print the cause in one line and the hint in another; with --debug a traceback too."""
    if DEBUG in sys.argv:
        traceback.print_exc()
    problems = error.problems if isinstance(error, ConfigError) else ()
    for line in problems or (str(error),):
        echo(f"streamcl: {one_line(line)}", err=True)
    if error.hint:
        echo(f"  hint: {one_line(error.hint)}", err=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise CheckpointError in place of OSError where the disk is full or fails while the run writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS | FOLDER_ERRORS:
            raise
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        raise CheckpointError(
            f"the run directory can no longer be written: {error.strerror}{where}",
            hint="its checkpoints are intact; once it is writable, the same command continues from them",
        ) from error
