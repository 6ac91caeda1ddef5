"""The keyed hash of an image, by which a sample that is brought back is recognised."""

from __future__ import annotations

import hashlib

from streamcl.events import Pixels
from streamcl.storage.sqlite import keyed_hash


def hash_of_image(lineage_key: bytes, image: Pixels) -> bytes:
    """Return the hash, 16 bytes, of an image in the lineage that has this key.

    Args:
        lineage_key: the lineage's own.
        image: uint8 RGB [H, W, 3].
    """
    key = keyed_hash(lineage_key, "content", str(image.shape))
    return hashlib.blake2b(image.tobytes(), key=key, digest_size=16).digest()
