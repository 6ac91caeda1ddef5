"""The folder of a user's keys, outside every run directory: the signing key, and every public key."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from streamcl.errors import ConfigError, ForgettingError
from streamcl.storage.private_files import key_directory, make_private_folder, read_private, write_private
from streamcl.storage.signing import PublicKeys, SigningKey

PRIVATE, PUBLIC = "signing-key.pem", "public-keys.json"


class KeyFolder:
    """The keys in a folder. Every method raises ConfigError where others can read the folder or the key."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock

    @property
    def public_path(self) -> Path:
        """The file with the public keys, to be given to whoever verifies receipts."""
        return self.folder / PUBLIC

    def create(self, *, name: str | None = None) -> SigningKey:
        """Make the first signing key and return it. Raise ConfigError where there is one."""
        make_private_folder(self.folder)
        with self._locked(fcntl.LOCK_EX):
            if (self.folder / PRIVATE).exists():
                raise ConfigError(
                    f"{self.folder / PRIVATE} exists", hint="streamcl key rotate replaces it by a new one"
                )
            return self._make(name)

    def rotate(self, *, name: str | None = None) -> SigningKey:
        """Replace the signing key and return the new one; the old public key stays, valid until now.

        The old private key is deleted. After a crash the old key or the new one is in use.
        """
        with self._locked(fcntl.LOCK_EX):
            old = self.signing_key()
            if old is None:
                raise ConfigError(
                    f"there is no key in {self.folder}", hint="streamcl key init makes the first"
                )
            return self._make(name or old.public.name)

    @contextmanager
    def key_in_use(self) -> Iterator[SigningKey | None]:
        """Yield the signing key, None where none was made; until the block ends no other takes its place.

        So a time that is read in the block is one at which that key is valid.
        """
        with self._locked(fcntl.LOCK_SH):
            yield self.signing_key()

    def signing_key(self) -> SigningKey | None:
        """Return the signing key, with its name and validity; None where none was made."""
        path = self.folder / PRIVATE
        if (data := read_private(path)) is None:
            return None
        try:
            return SigningKey.from_pem(data, self.public_keys())
        except ValueError as error:
            raise ConfigError(f"{path} holds no signing key: {error}") from error

    def public_keys(self) -> PublicKeys:
        """Return every public key there was, each with the time in which it signed."""
        if not self.public_path.exists():
            return PublicKeys()
        try:
            return PublicKeys.read(self.public_path)
        except ForgettingError as error:
            raise ConfigError(str(error)) from error

    def _make(self, name: str | None) -> SigningKey:
        """Publish the new key first: nothing may be signed that nobody can verify. Then retire the others."""
        new = SigningKey.generate(name=name, valid_from=self._clock())
        self._publish(PublicKeys.of([*self.public_keys().values(), new.public]))
        write_private(self.folder / PRIVATE, new.to_pem())
        self._publish(
            PublicKeys.of(
                replace(key, valid_until=new.public.valid_from)
                if key.valid_until is None and key != new.public
                else key
                for key in self.public_keys().values()
            )
        )
        return new

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        """Hold the folder, where it exists, against other processes that make or use a key."""
        with ExitStack() as stack:
            with suppress(OSError):  # some network file systems cannot lock a folder
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                fcntl.flock(folder, operation)
            yield

    def _publish(self, keys: PublicKeys) -> None:
        write_private(self.public_path, keys.to_bytes())


def default_key_folder() -> KeyFolder:
    """Return the user's key folder (see `key_directory`)."""
    return KeyFolder(key_directory())
