"""streamcl token add, list and revoke: who may use a server, and in which role."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamcl.cli.help import FullHelpGroup
from streamcl.cli.terminal import echo

if TYPE_CHECKING:
    from streamcl.serving.access.tokens import Role, TokenFile

TOKENS_OPTION = click.option(
    "--tokens",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Another file than tokens.json in $STREAMCL_KEYS or ~/.config/streamcl.",
)


@click.group(cls=FullHelpGroup)
def token() -> None:
    """The tokens of those who may use `streamcl serve`; servers read changes at once."""


@token.command("add")
@click.argument("name")
@click.option(
    "--role",
    required=True,
    type=click.Choice(["reader", "teacher", "officer"]),
    help="reader: predictions and figures; teacher: labels and images too; officer: requests to forget too.",
)
@TOKENS_OPTION
def add_token(name: str, role: Role, tokens: Path | None) -> None:
    """Print a new token, this once; only its SHA-256 is stored. NAME is who bears it."""
    secret = _file(tokens).add(name, role)
    echo(secret)
    echo(f"streamcl: the token of {name} ({role}); it cannot be shown again", err=True)


@token.command("list")
@TOKENS_OPTION
def list_tokens(tokens: Path | None) -> None:
    """Print the name, role and date of each token."""
    for each in _file(tokens).tokens():
        echo(f"{each.name}\t{each.role}\t{time.strftime('%Y-%m-%d', time.gmtime(each.created))}")


@token.command("revoke")
@click.argument("name")
@TOKENS_OPTION
def revoke_token(name: str, tokens: Path | None) -> None:
    """Make the token NAME void, at once, also for servers that run."""
    _file(tokens).revoke(name)
    echo(f"streamcl: {name} is revoked", err=True)


def _file(path: Path | None) -> TokenFile:
    from streamcl.serving.access.tokens import TokenFile, default_token_file

    return default_token_file() if path is None else TokenFile(path)
