"""The library's log messages on the command line: those of the `streamcl` logger go to stderr, one a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click


class _ToStderr(logging.Handler):
    """Writes to the present stderr, which a test or a caller may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@contextmanager
def show_messages(prefix: str = "streamcl: ") -> Iterator[None]:
    """Write every message of level INFO and above to stderr while the block runs, and to no other handler."""
    logger, handler = logging.getLogger("streamcl"), _ToStderr()
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
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
    logger = logging.getLogger("streamcl")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
