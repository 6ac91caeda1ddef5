"""The files of one checkpoint: made from a state, and read without trust in any byte that is not confirmed.

    arrays.safetensors   arrays of the state, numbered in the order in which the state holds them
    array-<sha256>.bin   the bytes of a large one that does not change (see array_files), little-endian; two
                         checkpoints may have the file in common
    state.json           the rest of the state, with {"$array": number} where an array belongs
    manifest.json        format, offset, step, fingerprints, size and sha256 of the members, file, dtype and
                         shape of arrays with a file of their own, its own sha256, and in a run a MAC (see
                         manifest_mac)

Nothing in them can be executed.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors import numpy as safetensors

from streamcl import __version__
from streamcl.errors import CheckpointError
from streamcl.protocols import State
from streamcl.storage.array_files import MappedArray, array_files, digest_in, map_array, shared_arrays
from streamcl.storage.canonical_json import canonical_json, sha256_of_json
from streamcl.storage.manifest_mac import MAC, ManifestMac
from streamcl.storage.plain_state import pack, unpack

CHECKPOINT_FORMAT = 2
"""The layout above; 1 has all arrays in one file.

Every format computes the manifest's sha256 alike, so that damage differs from age.
"""

MANIFEST, TREE, ARRAYS = "manifest.json", "state.json", "arrays.safetensors"
MANIFEST_LIMIT = 1 << 22  # bytes; a manifest has under a thousand, and 400 for each array with its own file


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be used; the message names the file and the reason."""


class VerifiedCheckpoint(NamedTuple):
    """The content of a good checkpoint."""

    manifest: dict[str, Any]
    state: State


def verify_checkpoint(path: Path, mac: ManifestMac | None = None) -> VerifiedCheckpoint:
    """Return a checkpoint's content, every byte of it confirmed by its manifest, and that by its MAC.

    Raise CorruptCheckpoint, or CheckpointError for an undamaged one of a newer format.

    mac: checks MACs; None takes a manifest without regard to who has written it.
    """
    manifest = _authentic_manifest(path, mac)
    members = manifest["members"]
    _confirm_names(path, {MANIFEST, *members})
    content = {name: _read_member(path / name, members[name]) for name in (TREE, ARRAYS)}
    mapped = _map_arrays(path, manifest)
    try:
        state = unpack(json.loads(content[TREE]), {**safetensors.load(content[ARRAYS]), **mapped})
        return VerifiedCheckpoint(manifest, state)
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise CorruptCheckpoint(f"its members do not make a state: {error!r}") from error


def offset_of(path: Path, mac: ManifestMac | None = None) -> int:
    """Return the offset of a checkpoint, from its manifest alone. Raise CorruptCheckpoint for a bad one."""
    return int(_authentic_manifest(path, mac)["offset"])


def _authentic_manifest(path: Path, mac: ManifestMac | None) -> dict[str, Any]:
    """Return the manifest of a checkpoint, and check its MAC."""
    manifest = _read_manifest(path)
    if mac is not None and (fault := mac.fault(manifest)) is not None:
        raise CorruptCheckpoint(f"{MANIFEST}: {fault}")
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    data = read_regular_file(path / MANIFEST, limit=MANIFEST_LIMIT)
    try:
        manifest = json.loads(data)
        claimed = manifest.pop("sha256")
        whole = data == canonical_json({**manifest, "sha256": sha256_of_json(manifest)})
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{MANIFEST} cannot be read: {error!r}") from error
    if not whole:
        raise CorruptCheckpoint(
            f"{MANIFEST} (format {manifest.get('format')}) does not match its sha256 {str(claimed)[:12]}"
        )
    if isinstance(manifest.get("format"), int) and manifest["format"] > CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path.name} has format {manifest['format']}, written by streamcl {manifest.get('streamcl')}; "
            f"streamcl {__version__} reads up to {CHECKPOINT_FORMAT}",
            hint="use the newer streamcl",
        )
    if not _is_sound(manifest):
        raise CorruptCheckpoint(f"{MANIFEST} lacks fields of format {CHECKPOINT_FORMAT}")
    return dict(manifest)


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    """Return whether the manifest has the fields of this format; a forged one may not."""
    kinds = {"format": int, "offset": int, "step": int, "fingerprint": dict, "members": dict}
    if not all(isinstance(manifest.get(name), kind) for name, kind in kinds.items()):
        return False
    facts, arrays = manifest["members"], manifest.get("arrays", {})
    if not isinstance(arrays, dict) or not all(isinstance(each, dict) for each in arrays.values()):
        return False
    files = [each.get("member") for each in arrays.values()]
    if not all(isinstance(name, str) and digest_in(name) for name in files):
        return False
    return facts.keys() == {TREE, ARRAYS, *files} and all(
        isinstance(each, dict) and isinstance(each.get("bytes"), int) and isinstance(each.get("sha256"), str)
        for each in facts.values()
    )


def _confirm_names(path: Path, expected: set[str]) -> None:
    try:
        present = {member.name for member in path.iterdir()}
    except OSError as error:
        raise CorruptCheckpoint(f"it cannot be listed: {error.strerror}") from error
    if missing := sorted(expected - present):
        raise CorruptCheckpoint(f"{missing[0]} is missing")
    if stray := sorted(present - expected):
        raise CorruptCheckpoint(f"{stray[0]!r} does not belong there")


def _map_arrays(path: Path, manifest: Mapping[str, Any]) -> dict[str, MappedArray]:
    """Return the arrays with a file of their own, by number."""
    return {
        number: _map_member(path / entry["member"], manifest["members"][entry["member"]]["bytes"], entry)
        for number, entry in manifest.get("arrays", {}).items()
    }


def _map_member(path: Path, size: int, entry: Mapping[str, Any]) -> MappedArray:
    try:
        return map_array(path, size, entry)
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptCheckpoint(f"{path.name} cannot be used: {error}") from error


def _read_member(path: Path, facts: Mapping[str, Any]) -> bytes:
    size, digest = facts["bytes"], facts["sha256"]
    data = read_regular_file(path, limit=size)
    if len(data) != size:
        raise CorruptCheckpoint(f"{path.name} has {len(data)} bytes, its manifest says {size}")
    if (found := _sha256(data)) != digest:
        raise CorruptCheckpoint(f"{path.name} has sha256 {found[:12]}, its manifest says {digest[:12]}")
    return data


def read_regular_file(path: Path, *, limit: int) -> bytes:
    """Return the bytes of a plain file, `limit` at most; refuse links, pipes and devices."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise CorruptCheckpoint(f"{path.name} is not a plain file")
        if found.st_size > limit:
            raise CorruptCheckpoint(f"{path.name} has {found.st_size} bytes, more than the {limit} expected")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path.name} is missing") from error
    except OSError as error:
        raise CorruptCheckpoint(f"{path.name} cannot be read: {error.strerror or error}") from error


def members_of(
    offset: int,
    step: int,
    state: State,
    fingerprint: Mapping[str, str],
    mac: ManifestMac | None = None,
) -> dict[str, bytes | memoryview]:
    """Return the files of a checkpoint by name; the manifest comes last, with the hashes of the others.

    Raise CheckpointError where an array in a file of an earlier checkpoint has been changed.

    mac: authenticates the manifest; None leaves that out.
    """
    tree, arrays = pack(state)
    shared = shared_arrays(arrays)
    content, entries = array_files(shared)
    members: dict[str, bytes | memoryview] = {
        **content,
        ARRAYS: safetensors.save({number: arrays[number] for number in arrays.keys() - shared.keys()}),
        # The order of keys is kept here, because the order of a dict may decide the future too.
        TREE: json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii"),
    }
    manifest: dict[str, Any] = {
        "format": CHECKPOINT_FORMAT,
        "streamcl": __version__,
        "offset": offset,
        "step": step,
        "fingerprint": dict(fingerprint),
        "members": {name: _facts(name, data) for name, data in members.items()},
        "arrays": entries,
    }
    if mac is not None:
        manifest[MAC] = mac.of(manifest)
    return {**members, MANIFEST: canonical_json({**manifest, "sha256": sha256_of_json(manifest)})}


def _facts(name: str, data: bytes | memoryview) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": digest_in(name) or _sha256(data)}


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
