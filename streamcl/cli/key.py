"""streamcl key init, show and rotate: the key that signs receipts, outside every run directory."""

from __future__ import annotations

import time

import click

HOLDER = click.option("--name", metavar="TEXT", help="Who holds the key, for those who verify with it.")


@click.group()
def key() -> None:
    """The key that signs receipts, in $STREAMCL_KEYS or ~/.config/streamcl."""


@key.command("init")
@HOLDER
def init_key(name: str | None) -> None:
    """Make a signing key; from now on every receipt is signed with it."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    click.echo(folder.create(name=name).public.key_id)
    click.echo(f"streamcl: give {folder.public_path} to those who verify receipts", err=True)


@key.command("show")
def show_keys() -> None:
    """Print the public keys as a JSON Web Key Set, for those who verify receipts."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    keys, current = folder.public_keys(), folder.signing_key()
    click.echo(keys.to_bytes().decode(), nl=False)
    for each in keys.values():
        state = "signs" if current is not None and each.key_id == current.public.key_id else "retired"
        click.echo(f"streamcl: {each.key_id} {state}, made {_date(each.valid_from)}", err=True)
    if current is None:
        click.echo(f"streamcl: no key in {folder.folder}, so receipts are not signed", err=True)


@key.command("rotate")
@HOLDER
def rotate_key(name: str | None) -> None:
    """Replace the signing key by a new one; the old public key stays, for the receipts that it has signed."""
    from streamcl.storage.key_folder import default_key_folder

    folder = default_key_folder()
    click.echo(folder.rotate(name=name).public.key_id)
    click.echo(f"streamcl: give {folder.public_path} anew to those who verify receipts", err=True)


def _date(moment: float | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d", time.gmtime(moment))
