"""Tokens of those who may use a server: each has a name and a role; only its SHA-256 is stored."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from streamcl.errors import ConfigError
from streamcl.storage import files
from streamcl.storage.private_files import OTHERS, key_directory, make_private_folder

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["reader", "teacher", "officer"]
ROLES: tuple[Role, ...] = get_args(Role)

TOKENS = "tokens.json"
PREFIX = "streamcl_"
"""So that scanners of published files recognise a token."""
TOKEN_BYTES = 32
MAX_TOKENS = 256
MAX_FILE_BYTES = 1 << 18  # an entry has some 250

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class AccessToken(BaseModel):
    """A token as it is stored: without its secret. created: seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    sha256: str
    created: float


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tokens: tuple[AccessToken, ...] = ()


class TokenFile:
    """A file with tokens, which only its owner can read; it is replaced as a whole.

    Every method raises ConfigError where the file is damaged, or can be read or changed by others.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock

    def tokens(self) -> tuple[AccessToken, ...]:
        """Return all tokens, in the order in which they were added; none where the file is missing."""
        try:
            return _Content.model_validate_json(self._read()).tokens
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            raise ConfigError(f"{self.path} is no file of tokens: {error.errors()[0]['msg']}") from error

    def add(self, name: str, role: Role) -> str:
        """Add a token and return its secret, which is stored nowhere. Raise ConfigError for a name in use."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r:.80} is no name of a token",
                hint="it has 1 to 64 letters, digits and . _ @ -, and begins with a letter or digit",
            )
        secret = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        with self._locked():
            tokens = self.tokens()
            if any(each.name == name for each in tokens):
                raise ConfigError(
                    f"there is a token {name!r}", hint=f"streamcl token revoke {name} makes it void"
                )
            if len(tokens) >= MAX_TOKENS:
                raise ConfigError(f"{self.path} has {MAX_TOKENS} tokens, which is the limit")
            added = AccessToken(name=name, role=role, sha256=hash_of(secret), created=self._clock())
            self._write((*tokens, added))
        return secret

    def revoke(self, name: str) -> None:
        """Make a token void. Raise ConfigError where there is none of that name."""
        with self._locked():
            tokens = self.tokens()
            left = tuple(each for each in tokens if each.name != name)
            if len(left) == len(tokens):
                raise ConfigError(f"there is no token {name!r:.80}", hint="see streamcl token list")
            self._write(left)

    def _read(self) -> bytes:
        for path, refused in ((self.path, OTHERS), (self.path.parent, stat.S_IWGRP | stat.S_IWOTH)):
            if path.stat().st_mode & refused:
                raise ConfigError(f"{path} can be read or changed by others", hint=f"chmod go= {path}")
        with self.path.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES)

    def _write(self, tokens: Sequence[AccessToken]) -> None:
        content = _Content(tokens=tuple(tokens)).model_dump_json(indent=1).encode() + b"\n"
        temporary = files.temporary_path(self.path)
        try:
            files.write_new(temporary, content)
            temporary.chmod(0o600)
            files.DISK.replace(temporary, self.path)
            files.DISK.fsync_folder(self.path.parent)
        except OSError as error:
            files.discard(temporary)
            raise ConfigError(f"{self.path} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder, which is made where it is missing, against others that change the file."""
        if not self.path.parent.exists():
            make_private_folder(self.path.parent)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


class LiveTokens:
    """The tokens of a file as it is now: it is read again once it has changed, so that a revocation counts.

    Where the file cannot be read no token is valid, and the log says why.
    """

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._tokens: tuple[AccessToken, ...] = ()

    def current(self) -> tuple[AccessToken, ...]:
        """Return the valid tokens."""
        if (stamp := self._stamp_now()) != self._stamp:
            try:
                self._tokens = self._file.tokens()
            except ConfigError as error:
                logger.warning("no token is valid: %s", error)
                self._tokens = ()
            self._stamp = stamp
        return self._tokens

    def find(self, secret: str) -> AccessToken | None:
        """Return the valid token with that secret; the time that it takes does not depend on the secret."""
        digest, found = hash_of(secret), None
        for each in self.current():
            if hmac.compare_digest(each.sha256, digest):
                found = each
        return found

    def _stamp_now(self) -> tuple[int, ...] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)


def hash_of(secret: str) -> str:
    """Return the SHA-256 of a token; without a salt, since a token is 32 random bytes."""
    return hashlib.sha256(secret.encode()).hexdigest()


def default_token_file() -> TokenFile:
    """Return the file of tokens beside the user's signing keys (see `key_directory`)."""
    return TokenFile(key_directory() / TOKENS)
