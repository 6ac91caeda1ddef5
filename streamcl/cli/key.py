"""streamcl key init, show and rotate: the key that signs receipts; and timestamp, by another's clock."""

from __future__ import annotations

import time
from pathlib import Path

import click

from streamcl.cli.help import FullHelpGroup
from streamcl.cli.terminal import echo

HOLDER = click.option("--name", metavar="TEXT", help="Who holds the key, for those who verify with it.")


@click.group(cls=FullHelpGroup)
def key() -> None:
    """The key that signs receipts, in $STREAMCL_KEYS or ~/.config/streamcl."""


@key.command("init")
@HOLDER
def init_key(name: str | None) -> None:
    """Make a signing key; from now on every receipt is signed with it."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    echo(folder.create(name=name).public.key_id)
    echo(f"streamcl: give {folder.public_path} to those who verify receipts", err=True)


@key.command("show")
def show_keys() -> None:
    """Print the public keys as a JSON Web Key Set, for those who verify receipts."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    keys, current = folder.public_keys(), folder.signing_key()
    echo(keys.to_bytes().decode().rstrip())
    for each in keys.values():
        state = "signs" if current is not None and each.key_id == current.public.key_id else "retired"
        echo(f"streamcl: {each.key_id} {state}, made {_date(each.valid_from)}", err=True)
    if current is None:
        echo(f"streamcl: no key in {folder.folder}, so receipts are not signed", err=True)


@key.command("rotate")
@HOLDER
def rotate_key(name: str | None) -> None:
    """Replace the signing key by a new one; the old public key stays, for the receipts that it has signed."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    echo(folder.rotate(name=name).public.key_id)
    echo(f"streamcl: give {folder.public_path} anew to those who verify receipts", err=True)


@click.command()
@click.argument(
    "receipts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--authority", required=True, metavar="URL", help="An authority of time stamps (RFC 3161).")
def timestamp(receipts: tuple[Path, ...], authority: str) -> None:
    """Let an authority state that signed RECEIPTS exist now; only their hashes are sent.

    The answer is ID.tsr beside the receipt; `streamcl verify --roots` verifies it without the network.
    """
    from streamcl.forgetting.receipts.timestamp import request_stamp

    for path in receipts:
        echo(str(request_stamp(path, authority)))


def _date(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d", time.gmtime(moment))
