"""Griffe extension of the documentation site: the doctests of a docstring are shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
"""From a prompt to the next blank line."""


class DoctestFences(griffe.Extension):
    """Puts every doctest between fences, since Markdown takes its prompts for quotations."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - griffe's signature
        """Change the docstring of an object after it was read."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
