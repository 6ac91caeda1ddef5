"""Time stamps of an authority (RFC 3161): a signed receipt existed at a time, by somebody else's clock."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path
from typing import Any

from streamcl.errors import ConfigError, ForgettingError, MissingExtra
from streamcl.storage import files
from streamcl.storage.envelope import SUFFIX, envelope_path

STAMP_SUFFIX = ".tsr"
"""The ending of the authority's answer, which lies beside the envelope that it is of."""

STAMP_SIZE_LIMIT = 1 << 20  # bytes; with a chain of certificates some 6,000
AUTHORITY_TIMEOUT = 60  # seconds
MEDIA_TYPE = "application/timestamp-query"


def stamp_path(receipt: Path) -> Path:
    """Return where the time stamp of a receipt is."""
    return receipt.with_suffix(STAMP_SUFFIX)


def request_stamp(receipt: Path, authority: str) -> Path:
    """Let an authority stamp the envelope of a receipt, and return the path of its answer.

    Only a hash is sent. Raise ForgettingError where the receipt is not signed, the authority cannot be
    reached, or its answer is of something else.
    """
    library = _library()
    signed = _envelope(receipt)
    request = library.TimestampRequestBuilder().data(signed).build()
    answer = _post(authority, request.as_bytes())
    try:
        response = library.decode_timestamp_response(answer)
        granted = response.status == library.PKIStatus.GRANTED
        info = response.tst_info if granted else None
    except ValueError as error:
        raise ForgettingError(f"{authority} does not answer like an authority of time stamps") from error
    if info is None:
        raise ForgettingError(f"{authority} has refused the time stamp: {response.status_string}")
    if info.nonce != request.nonce or info.message_imprint.message != hashlib.sha512(signed).digest():
        raise ForgettingError(f"{authority} has answered another request than this one")
    files.atomic_write(stamp_path(receipt), answer)
    return stamp_path(receipt)


def verify_stamp(receipt: Path, roots: Path) -> str:
    """Return what the time stamp of a receipt proves, verified without the network.

    roots: certificates in PEM that the verifier trusts. Raise ForgettingError where the stamp is missing, not
    of this envelope, or not by an authority that one of them vouches for.
    """
    library = _library()
    from cryptography import x509

    path, signed = stamp_path(receipt), _envelope(receipt)
    try:
        certificates = x509.load_pem_x509_certificates(roots.read_bytes())
    except (OSError, ValueError) as error:
        raise ForgettingError(f"{roots} holds no certificates in PEM: {error}") from error
    if not path.is_file():
        raise ForgettingError(f"{receipt.name} has no time stamp: {path.name} is missing")
    verifier = library.VerifierBuilder(roots=certificates).build()
    try:
        answer = files.read_limited(path, STAMP_SIZE_LIMIT)
        response = library.decode_timestamp_response(answer)
        verifier.verify_message(response, signed)
    except (library.VerificationError, ValueError) as error:
        raise ForgettingError(f"{path.name} is no valid time stamp of {receipt.name}: {error}") from error
    moment = response.tst_info.gen_time.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"an authority that you trust states that the signed receipt existed at {moment}"


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise MissingExtra(
            "time stamps need the package rfc3161-client", hint='pip install "streamcl[timestamp]"'
        ) from error
    return rfc3161_client


def _envelope(receipt: Path) -> bytes:
    path = receipt if receipt.suffix == SUFFIX else envelope_path(receipt)
    if not path.is_file():
        raise ForgettingError(f"{receipt.name} is not signed: only a signed receipt is stamped")
    return path.read_bytes()


def _post(authority: str, data: bytes) -> bytes:
    if not authority.startswith(("http://", "https://")):
        raise ConfigError(
            f"{authority!r:.80} is not the address of an authority, expected http:// or https://"
        )
    query = urllib.request.Request(authority, data, {"Content-Type": MEDIA_TYPE})
    try:
        with urllib.request.urlopen(query, timeout=AUTHORITY_TIMEOUT) as answer:
            content: bytes = answer.read(STAMP_SIZE_LIMIT)
    except OSError as error:
        raise ForgettingError(f"{authority} cannot be reached: {error}", hint="try again later") from error
    return content
