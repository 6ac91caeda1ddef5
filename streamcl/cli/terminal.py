"""Writes text to terminals of any encoding: control characters of foreign texts are escaped."""

from __future__ import annotations

import io
import sys
import unicodedata

import click

ESCAPED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, lone surrogates, separators of lines and paragraphs."""
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text after them, which can disguise a name."""


def use_any_encoding() -> None:
    """Make stdout and stderr escape what their encoding lacks, where writing it would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    r"""Return the text with every character escaped that would move the cursor or end the line.

    >>> printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    return "".join(_escaped(each) if _is_control(each) else each for each in text)


def one_line(text: str) -> str:
    r"""Return the text as one printable line: each run of blanks is one space.

    >>> one_line("two\n  lines")
    'two lines'
    """
    return printable(" ".join(text.split()))


def echo(text: str, *, err: bool = False) -> None:
    """Write the lines of a text to stdout or stderr; in each only tabs stay of the control characters."""
    lines = ("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    click.echo("\n".join(lines), err=err)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ESCAPED or character in DIRECTIONS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
