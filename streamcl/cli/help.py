"""Help pages that show whole sentences."""

from __future__ import annotations

import click


class FullHelpGroup(click.Group):
    """A group of commands whose help has the first sentence of each, on as many lines as it takes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands and what each does."""
        rows = [(name, _first_sentence(command)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_sentence(command: click.Command) -> str:
    text = " ".join((command.help or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")
