"""The secret under which personal data are hashed: it lies outside the runs, which keep the hashes alone."""

from __future__ import annotations

import hashlib
import logging
import secrets
from pathlib import Path

from streamcl.errors import ConfigError
from streamcl.storage.private_files import KEYS_VARIABLE, key_directory, read_private, write_private_once

logger = logging.getLogger(__name__)

SECRET_FILE = "hash-secret"
SECRET_BYTES = 32


class HashSecret:
    """The secret in a key folder. A file of hashes has a public salt, and its key follows from both."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (key_directory() if folder is None else folder) / SECRET_FILE

    def make(self) -> None:
        """Draw the secret where there is none. Raise ConfigError where it cannot be written."""
        if read_private(self.path) is None:
            write_private_once(self.path, secrets.token_hex(SECRET_BYTES).encode())
            logger.info("%s is made; keep a copy: without it no run can be resumed", self.path)

    def key(self, salt: bytes) -> bytes:
        """Return the key, 32 bytes, of the file that has this salt. Raise ConfigError without the secret."""
        data = read_private(self.path)
        if data is None:
            raise ConfigError(
                f"{self.path} is missing, without which nobody can tell what this run has erased",
                hint=f"restore it from a backup, or name the folder that has it in {KEYS_VARIABLE}",
            )
        try:
            secret = bytes.fromhex(data.decode())
        except ValueError:
            secret = b""
        if len(secret) != SECRET_BYTES:
            raise ConfigError(f"{self.path} holds no secret", hint="restore it from a backup")
        return hashlib.blake2b(salt, key=secret, digest_size=32).digest()
