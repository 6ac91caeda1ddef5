"""Converts bytes, a file, a PIL image or an array to uint8 RGB pixels, within limits."""

from __future__ import annotations

import io
import re
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from streamcl.errors import BadRecord, cause_of
from streamcl.events import Pixels

# Raster formats only. Pillow can open more, but EPS starts Ghostscript and WMF draws with the system.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "HEIF")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # of phones; pictures, though an extra is needed to read them
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")  # at byte 8, after "ftyp"
ORIENTATION = 0x0112  # the EXIF tag
CHANNELS = (1, 3, 4)
_SILENCE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as Python keeps the filter set below
RANGE_MARGIN = 1e-3  # how far resizing in floating point may leave [0, 1]


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest images accepted, checked on the header before a pixel is decoded.

    max_pixels: width x height; 50 million are 150 MB as RGB, a phone's largest photograph.
    max_side: of either side, in pixels; refuses strips of 1 x 100,000.
    max_file_bytes: of the encoded picture.
    """

    max_pixels: int = 50_000_000
    max_side: int = 20_000
    max_file_bytes: int = 64 * 2**20

    def check(self, width: int, height: int) -> None:
        """Raise BadRecord where a picture of this size is empty or too large."""
        found = f"image of {width} x {height} pixels"
        if min(width, height) < 1:
            raise BadRecord(f"{found} is empty")
        if max(width, height) > self.max_side:
            raise BadRecord(f"{found}; a side may have {self.max_side}", hint="raise max_side")
        if width * height > self.max_pixels:
            raise BadRecord(f"{found}; {self.max_pixels} are allowed", hint="raise max_pixels")

    def check_file(self, name: str, size: int) -> None:
        """Raise BadRecord where an encoded picture of `size` bytes is too large."""
        if size > self.max_file_bytes:
            allowed = f"{self.max_file_bytes} allowed"
            raise BadRecord(f"{name} has {size} bytes; {allowed}", hint="raise max_file_bytes")


def decode(source: bytes | Path | Image.Image, limits: ImageLimits) -> Pixels:
    """Decode an image to uint8 RGB, [H, W, 3], turned upright by its EXIF orientation.

    Transparency is laid over white, 16-bit grey keeps its upper eight bits (rounded), of an animation the
    first frame is taken. Raise BadRecord with the reason for everything else.
    """
    _quiet_pillow()
    if isinstance(source, Image.Image):
        return _upright_rgb(source, limits, "PIL image")
    encoded = read_encoded(source, limits) if isinstance(source, Path) else source
    what = f"{source.name!r}" if isinstance(source, Path) else "encoded image"
    if not encoded:
        raise BadRecord(f"{what} is empty: 0 bytes")
    limits.check_file(what, len(encoded))
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
    except UnidentifiedImageError as error:
        raise BadRecord(f"{what} is not an image of a known format", hint=_extra_for(encoded)) from error
    except Exception as error:  # Pillow's parsers raise nearly everything when fed garbage
        raise BadRecord(f"{what} is not a readable image: {cause_of(error)}") from error
    with image:
        return _upright_rgb(image, limits, what)


def from_array(array: npt.NDArray[Any], limits: ImageLimits, *, channels_first: bool = False) -> Pixels:
    """Return a copy of an array as uint8 RGB, [H, W, 3].

    Args:
        array: uint8 in 0..255 or floating point in [0, 1], shaped [H, W], [H, W, C] or [C, H, W] with C of 1
            (grey), 3 (RGB) or 4 (RGBA, laid over white).
        limits: on the number of pixels.
        channels_first: decides where both outer axes could be the channels: False for numpy arrays, True for
            tensors.

    Raises:
        BadRecord: any other array.
    """
    hwc = _channels_last(array, channels_first)
    limits.check(hwc.shape[1], hwc.shape[0])
    pixels = _to_bytes(hwc)
    if pixels.shape[2] == 4:
        return _over_white(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def _channels_last(array: npt.NDArray[Any], channels_first: bool) -> npt.NDArray[Any]:
    """[H, W], [H, W, C] or [C, H, W] -> [H, W, C]."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise BadRecord(
            f"image has the shape {array.shape}",
            hint="one image is [H, W], [H, W, C] or [C, H, W]; a batch of them comes with as many labels",
        )
    first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
    if not first and not last:
        raise BadRecord(f"image has the shape {array.shape}, without an axis of 1, 3 or 4 channels")
    return array.transpose(1, 2, 0) if first and (channels_first or not last) else array


def _to_bytes(values: npt.NDArray[Any]) -> Pixels:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        hint = "give uint8 in 0..255 or floating point in [0, 1]"
        raise BadRecord(f"image has the dtype {values.dtype}", hint=hint)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise BadRecord("image has NaN or infinite pixels")
    if low < -RANGE_MARGIN or high > 1 + RANGE_MARGIN:
        raise BadRecord(
            f"floating-point image with values from {low:.4g} to {high:.4g}; expected [0, 1]",
            hint="divide by 255, or leave out the normalisation: the backbone brings its own",
        )
    return np.rint(np.clip(values.astype(np.float64), 0, 1) * 255).astype(np.uint8)


@cache
def _formats() -> list[str]:
    """Return those of FORMATS that this Pillow can open, HEIF where pillow-heif is installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def _extra_for(encoded: bytes) -> str | None:
    """Return the hint for an encoded image that an extra could read."""
    is_heif = encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF_BRANDS
    return 'pip install "streamcl[heif]"' if is_heif and "HEIF" not in _formats() else None


@cache
def image_suffixes() -> frozenset[str]:
    """Return the extensions, in lower case and with their dot, of the pictures that `decode` reads.

    Those of HEIF are among them in any case, so that such files are not passed over in silence.
    """
    known = _formats()
    found = (suffix for suffix, name in Image.registered_extensions().items() if name in known)
    return frozenset((*found, *HEIF_SUFFIXES))


def read_encoded(path: Path, limits: ImageLimits) -> bytes:
    """Return the content of an image's file. Raise BadRecord where it is too large, or cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise BadRecord(f"{path.name!r} is not a regular file")
        limits.check_file(f"{path.name!r}", status.st_size)
        with path.open("rb") as file:
            return file.read(limits.max_file_bytes + 1)
    except (OSError, ValueError) as error:
        remote = re.match(r"\w{2,}:/", path.as_posix())  # Path makes one slash of two
        hint = "download it first: no network is used unless asked for" if remote else None
        raise BadRecord(f"file {str(path)[:200]!r} cannot be read: {cause_of(error)}", hint=hint) from error


def _upright_rgb(image: Image.Image, limits: ImageLimits, what: str) -> Pixels:
    limits.check(*image.size)
    try:
        image.load()
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        pixels = _rgb(image)
    except BadRecord:
        raise
    except Exception as error:  # as above: truncated and forged files raise nearly everything
        raise BadRecord(f"{what} cannot be decoded: {cause_of(error)}") from error
    limits.check(pixels.shape[1], pixels.shape[0])  # some formats find their true size while loading
    return pixels


def _rgb(image: Image.Image) -> Pixels:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_sixteen_bits(np.asarray(image).astype(np.int64))
    if image.mode == "F":
        return from_array(np.asarray(image), ImageLimits(image.width * image.height, max(image.size)))
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), order="C")


def _from_sixteen_bits(grey: npt.NDArray[np.int64]) -> Pixels:
    """[H, W] in 0..65535 -> [H, W, 3]; Pillow opens 16-bit grey files as "I;16" or, in 32 bits, as "I"."""
    if grey.min() < 0 or grey.max() > 65535:
        raise BadRecord("32-bit integer image with values outside 0..65535", hint="save it with 8 or 16 bits")
    eight = ((grey + 128) // 257).astype(np.uint8)
    return np.repeat(eight[:, :, None], 3, axis=2)


def _over_white(image: Image.Image) -> Pixels:
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"), order="C")


def _quiet_pillow() -> None:
    """Silence Pillow's warnings of damaged metadata and large files; BadRecord reports them.

    The filter stays installed for Pillow's own modules: `warnings.catch_warnings` around each picture is not
    safe in threads, and makes Python repeat every other warning of the process once a picture.
    """
    if not warnings.filters or tuple(warnings.filters[0]) != _SILENCE:
        warnings.filterwarnings("ignore", module=_SILENCE[3].pattern)
