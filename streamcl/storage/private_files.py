"""Files for their owner alone, in one folder outside every run directory: the user's keys and secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from streamcl.errors import ConfigError
from streamcl.storage import files

KEYS_VARIABLE = "STREAMCL_KEYS"
"""The environment variable that names the folder; otherwise it is streamcl/ in the user's configuration."""

OTHERS = stat.S_IRWXG | stat.S_IRWXO
PRIVATE_SIZE_LIMIT = 1 << 16  # bytes; a key has some 120


def key_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's key folder: that of STREAMCL_KEYS, else ~/.config/streamcl (XDG_CONFIG_HOME)."""
    if given := environment.get(KEYS_VARIABLE):
        return Path(given)
    return Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "streamcl"


def make_private_folder(folder: Path) -> None:
    """Make a folder where it is missing; nobody but its owner has access to it from then on.

    Raise ConfigError where that is not possible.
    """
    try:
        files.make_folder(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Write a file atomically; its folder is made where it is missing, and keeps others out from then on.

    Raise ConfigError where the folder cannot be written.
    """
    make_private_folder(path.parent)
    try:
        files.atomic_write(path, data)
        path.chmod(0o600)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_private_once(path: Path, data: bytes) -> None:
    """Write a file like `write_private` unless it exists; of several processes the first one's stays."""
    temporary = files.temporary_path(path)
    write_private(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink()
    files.DISK.fsync_folder(path.parent)


def read_private(path: Path) -> bytes | None:
    """Return the content of a file; None where it is missing.

    Raise ConfigError where others can read or change it or its folder, or it cannot be read.
    """
    try:
        for each in (path, path.parent):
            if each.stat().st_mode & OTHERS:
                hint = f"chmod go= {each}; where others have read it, its keys are no secrets any more"
                raise ConfigError(f"{each} can be read or changed by others", hint=hint)
        return files.read_limited(path, PRIVATE_SIZE_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}",
        hint=f"name a folder for keys, outside every run directory, in {KEYS_VARIABLE}",
    )
