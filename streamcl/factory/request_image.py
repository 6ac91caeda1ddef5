"""Decodes the image of a request, with the limits of a stream's images."""

from __future__ import annotations

from typing import Any

from streamcl.events import Sample
from streams.user.images import ImageLimits, decode
from streams.user.records import to_sample


def request_sample(encoded: bytes) -> Sample:
    """Return an encoded image as a sample without a label.

    Its header is checked before a pixel is decoded. Raise BadRecord where it is no image, or too large.
    """
    return Sample("request", decode(encoded, ImageLimits()))


def labelled_sample(image: Any, label: Any, name: str, subject: str | None = None) -> Sample:
    """Return an image of any form (see `image_sample`) as a sample with a label, as a source gives it.

    label: a class's name, or an integer; None leaves it out. Raise BadRecord for another label too.
    """
    return to_sample({"image": image, "label": label, "subject": subject}, default_id=name)


def image_sample(image: Any, name: str) -> Sample:
    """Return an image of any form as a sample of that name, without a label.

    Args:
        image: what a source takes as an image: an array or tensor, uint8 or floating point in [0, 1], shaped
            [H, W], [H, W, C] or [C, H, W]; a PIL image; a file's path; or an encoded image.
        name: the sample's id.

    Raises:
        BadRecord: it is no image, or too large.
    """
    return to_sample({"image": image}, default_id=name)
