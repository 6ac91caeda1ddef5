"""Messages of the library on the command line: each once, on stderr, and nowhere else."""

import logging

from streamcl.cli.messages import show_messages, silence_messages

LIBRARY = logging.getLogger("streamcl.runs.open")


def test_messages_are_written_to_stderr_while_a_command_shows_them(capsys, caplog):
    LIBRARY.info("before")
    with show_messages():
        LIBRARY.info("going on from offset %d", 3)
        LIBRARY.debug("details")
    LIBRARY.info("after")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "streamcl: going on from offset 3\n"
    assert caplog.messages == [], "a handler of the root would write it a second time"


def test_the_logger_is_as_it_was_before(capsys):
    logger = logging.getLogger("streamcl")
    before = logger.level, logger.propagate, list(logger.handlers)
    with show_messages(prefix=""):
        LIBRARY.warning("a cell failed")
    assert capsys.readouterr().err == "a cell failed\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_command_that_shows_no_messages_writes_no_warnings_either(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("streamcl"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("streamcl"), "propagate", False)
    silence_messages()
    silence_messages()
    assert len(logging.getLogger("streamcl").handlers) == 1
    LIBRARY.warning("the checkpoint before it is used")
    assert capsys.readouterr().err == ""
