"""Keeps passwords out of configurations, which are copied into the run directory, and out of messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from streamcl.errors import ConfigError

SECRET_WORDS = ("secret", "password", "token", "credential", "account_key", "connection_string")
_COPIED = "and the configuration is copied into the run directory"


def check_without_password(address: str, hint: str) -> None:
    """Raise ConfigError where a URL holds a password."""
    if urlsplit(address).password:
        raise ConfigError(f"the address holds a password, {_COPIED}", hint=hint)


def check_without_secrets(options: Mapping[str, Any], hint: str) -> None:
    """Raise ConfigError where an option, or one within another, is a secret by its name."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_without_secrets(value, hint)
        elif value and any(word in str(name).lower() for word in SECRET_WORDS):
            raise ConfigError(f"the option {name} is a secret, {_COPIED}", hint=hint)


def with_credentials(address: str, path: str | Path | None) -> str:
    """Return the address with the user and password in a file, a line `user:password`.

    Raise ConfigError where the file cannot be read or has no such line.
    """
    if path is None:
        return address
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials: {path} cannot be read: {error}") from None
    user, colon, password = text.partition(":")
    if not colon or len(text.splitlines()) != 1:
        raise ConfigError(f"credentials: {path} is not a line user:password")
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()
