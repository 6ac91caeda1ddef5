"""Decodes the image of a request, with the limits of a stream's images."""

from __future__ import annotations

from streamcl.events import Sample
from streams.user.images import ImageLimits, decode


def request_sample(encoded: bytes) -> Sample:
    """Return an encoded image as a sample without a label.

    Its header is checked before a pixel is decoded. Raise BadRecord where it is no image, or too large.
    """
    return Sample("request", decode(encoded, ImageLimits()))
