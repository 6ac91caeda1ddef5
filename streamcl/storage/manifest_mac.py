"""Authenticates manifests of checkpoints under a key outside the run (a MAC: message authentication code)."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping
from typing import Any

from streamcl.errors import ConfigError
from streamcl.storage.canonical_json import canonical_json
from streamcl.storage.hash_secret import HashSecret

logger = logging.getLogger(__name__)

SALT = b"streamcl checkpoint manifests"
"""Sets the key apart from those of the files of hashes, whose salts are random."""

MAC = "mac"
"""The name of the MAC in a manifest."""


class ManifestMac:
    """Makes and checks MACs: keyed hashes over all other fields of a manifest, hashes of members included.

    Args:
        secret: gives the key; the user's own by default.
        accept_foreign: take a checkpoint with the MAC of another secret, or where this machine has
            none, as one that cannot be checked, with a warning; by default it is refused.
    """

    def __init__(self, secret: HashSecret | None = None, *, accept_foreign: bool = False) -> None:
        self._secret, self._accept_foreign = secret or HashSecret(), accept_foreign

    def of(self, manifest: Mapping[str, Any]) -> dict[str, str]:
        """Return the MAC of a manifest that has none. Raise ConfigError where the secret is missing."""
        key = self._secret.key(SALT)
        return {"key": _hash(key, b"the key itself"), "hash": _hash(key, canonical_json(dict(manifest)))}

    def fault(self, manifest: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the MAC of a manifest, if anything is."""
        mac = manifest.get(MAC)
        if not isinstance(mac, Mapping):
            return "it has no MAC"
        try:
            expected = self.of({name: value for name, value in manifest.items() if name != MAC})
        except ConfigError as error:
            if not self._accept_foreign:
                raise
            logger.warning("whether the checkpoint was changed cannot be told: %s", error)
            return None
        if mac.get("key") != expected["key"]:
            if not self._accept_foreign:
                return "its MAC is of another secret"
            logger.warning("whether the checkpoint was changed cannot be told: its MAC is of another secret")
            return None
        if not hmac.compare_digest(str(mac.get("hash")).encode(), expected["hash"].encode()):
            return "its MAC is wrong: it was changed by somebody without the key"
        return None


def _hash(key: bytes, data: bytes) -> str:
    return hashlib.blake2b(data, key=key, digest_size=32).hexdigest()
