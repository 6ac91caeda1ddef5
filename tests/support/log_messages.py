"""Messages that streamcl logs while a test runs something."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """The messages of the loggers `streamcl` and `streams` while the block runs, of level INFO and above."""
    handler, loggers = _Collected(), [logging.getLogger(name) for name in ("streamcl", "streams")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield handler.messages
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
