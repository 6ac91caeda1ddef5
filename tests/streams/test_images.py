import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from streamcl.errors import BadRecord
from streams.user.images import ImageLimits, decode, from_array, image_suffixes

LIMITS = ImageLimits()


def colours(height=6, width=5):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_rgb_comes_back_as_it_was():
    pixels = colours()
    for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA"):
        assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind), LIMITS), pixels), kind
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), "WEBP", lossless=True), LIMITS), pixels)


def test_from_a_file_with_spaces_and_unicode_in_its_path(tmp_path):
    folder = tmp_path / "mit Leerzeichen ünd 漢字"
    folder.mkdir()
    (folder / "a b.png").write_bytes(encoded(Image.fromarray(colours())))
    (folder / "link").symlink_to(folder / "a b.png")
    assert np.array_equal(decode(folder / "a b.png", LIMITS), colours())
    assert np.array_equal(decode(folder / "link", LIMITS), colours())


def test_one_bit_and_grey_become_equal_channels():
    grey = colours()[:, :, 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), LIMITS), np.repeat(grey[:, :, None], 3, 2))
    bits = Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1")
    assert set(np.unique(decode(encoded(bits), LIMITS))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind):
    wide = np.array([[0, 257, 128 * 257, 65535, 129]], np.uint16)
    expected = np.array([[0, 1, 128, 255, 1]], np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(wide), kind), LIMITS)[:, :, 1], expected)
    as_integers = Image.fromarray(wide.astype(np.int32))
    assert as_integers.mode == "I"
    assert np.array_equal(decode(as_integers, LIMITS)[:, :, 2], expected)
    with pytest.raises(BadRecord, match="65535"):
        decode(Image.fromarray(wide.astype(np.int32) * 70), LIMITS)


def test_transparency_lies_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)]
    pixels = decode(encoded(Image.fromarray(rgba)), LIMITS)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    assert 120 <= pixels[0, 2, 0] <= 135
    grey_alpha = decode(encoded(Image.fromarray(rgba).convert("LA")), LIMITS)
    assert grey_alpha[0, 1].tolist() == [255, 255, 255]


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 20, 0, 0, 0])
    palette.putdata([0, 1])
    assert decode(encoded(palette), LIMITS)[0].tolist() == [[200, 10, 20], [0, 0, 0]]
    for transparency in (1, b"\xff\x00"):
        pixels = decode(encoded(palette, transparency=transparency), LIMITS)
        assert pixels[0].tolist() == [[200, 10, 20], [255, 255, 255]]


def test_cmyk_and_floating_point():
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    for kind in ("TIFF", "JPEG"):
        red = decode(encoded(cmyk, kind), LIMITS)[2, 2].astype(int)
        assert red[0] > 240, kind
        assert max(red[1:]) < 15, kind
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert decode(encoded(real, "TIFF"), LIMITS)[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(BadRecord, match="expected"):
        decode(Image.fromarray(np.array([[300.0]], np.float32)), LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(file, LIMITS)[1, 1, 0] > 240


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # the bright quarter is at the upper left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(stored, "PNG", exif=exif), LIMITS), upright)


def test_limits_hold_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width, height in (
        (1, 100_000),
        (100_000, 1),
        (12_000, 12_000),
        (16_000, 5_000),
        (2**31 - 1, 2**31 - 1),
    ):
        with pytest.raises(BadRecord, match=r"pixels|Decompression"):
            decode(png_header(width, height), LIMITS)
    with pytest.raises(BadRecord, match="bytes"):
        decode(b"x" * 101, ImageLimits(max_file_bytes=100))


def test_a_file_over_the_limit_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)
    monkeypatch.setattr(type(path), "open", lambda *args: pytest.fail("opened"))
    with pytest.raises(BadRecord, match="bytes"):
        decode(path, LIMITS)


def test_what_is_no_picture_is_refused(tmp_path):
    good = encoded(Image.fromarray(colours(64, 64)), "JPEG")
    bad = {
        "empty": b"",
        "text": b"hello, this is a text file\n" * 30,
        "html": b"<!doctype html><html></html>",
        "truncated": good[: len(good) // 2],
        "header": good[:30],
        "png": encoded(Image.fromarray(colours(64, 64)))[:2000],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        for source in (content, tmp_path / name):
            with pytest.raises(BadRecord):
                decode(source, LIMITS)
    with pytest.raises(BadRecord, match="known format"):  # Ghostscript is not asked
        decode(bad["postscript"], LIMITS)
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", ".", "nul\0l", "x" * 5000):
        with pytest.raises(BadRecord):
            decode(tmp_path / name, LIMITS)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA"]), st.data())
def test_damaged_files_raise_nothing_but_bad_record(kind, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in {"JPEG", "PNG", "TIFF", "WEBP"} else {}
    content = bytearray(encoded(Image.fromarray(colours(20, 20)), kind, **options))
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[place] = value
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(BadRecord):
        pixels = decode(bytes(content), ImageLimits(10_000, 1_000, 10**6))
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_damaged_metadata_gives_no_warning():
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\x69\x87\x04\0\x01\0\0\0\xff\xff\0\0"
    )
    content = encoded(Image.fromarray(colours()), "JPEG", exif=exif[:30])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode(content, LIMITS)
        Image.open(io.BytesIO(content)).getexif()
        before = len(warnings.filters)
        for _ in range(5):
            decode(content, LIMITS)
        assert len(warnings.filters) == before
    assert not seen


def test_threads_may_decode_together():
    content, results = encoded(Image.fromarray(colours(64, 64))), []
    threads = [threading.Thread(target=lambda: results.append(decode(content, LIMITS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(pixels, colours(64, 64)) for pixels in results)
    assert len(results) == 8


def test_arrays_of_every_layout():
    pixels = colours()
    assert np.array_equal(from_array(pixels, LIMITS), pixels)
    assert np.array_equal(from_array(pixels.transpose(2, 0, 1), LIMITS), pixels)
    assert np.array_equal(from_array((pixels / 255).astype(np.float32), LIMITS), pixels)
    assert np.array_equal(from_array((pixels / 255), LIMITS), pixels)
    grey = pixels[:, :, :1]
    for array in (grey, grey[:, :, 0], grey.transpose(2, 0, 1)):
        assert np.array_equal(from_array(array, LIMITS), np.repeat(grey, 3, 2))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    assert np.array_equal(from_array(alpha, LIMITS), pixels)


def test_where_both_axes_could_be_channels_the_kind_of_array_decides():
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(from_array(array, LIMITS), array)
    assert np.array_equal(from_array(array, LIMITS, channels_first=True), array.transpose(1, 2, 0))


def test_the_array_is_copied():
    pixels = colours()
    kept = from_array(pixels, LIMITS)
    pixels[:] = 0
    assert kept.any()


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4, 3), complex), "complex"),
        (np.zeros((4, 4, 3), object), "object"),
        (np.zeros((5, 5, 2), np.uint8), "channels"),
        (np.zeros(48, np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((0, 4), np.float32), "empty"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.where(np.arange(16).reshape(4, 4) == 3, np.inf, 0.5), "NaN or infinite"),
        (np.full((4, 4, 3), 200.0), "0, 1"),
        (np.full((4, 4, 3), -2.0, np.float16), "0, 1"),
        (np.zeros((1, 100_000, 3), np.uint8), "side"),
    ],
)
def test_other_arrays_are_refused(array, word):
    with pytest.raises(BadRecord, match=word):
        from_array(array, LIMITS)


@pytest.fixture
def heic(tmp_path):
    """A photograph as a phone takes it, 32 x 48, in quarters of other colours."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: HEIC is not tried")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[16:, 24:] = (200, 30, 30), (30, 30, 200)
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95)
    return path, pixels


def test_a_phones_photograph_is_read(heic):
    path, pixels = heic
    found = decode(path, LIMITS)
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < 8
    assert np.array_equal(decode(path.read_bytes(), LIMITS), found)
    with pytest.raises(BadRecord, match="are allowed"):
        decode(path, ImageLimits(max_pixels=1000))
    with pytest.raises(BadRecord):
        decode(path.read_bytes()[:200], LIMITS)


WITHOUT = """
import sys
from pathlib import Path

sys.modules["pillow_heif"] = None  # as if it were not installed
from streamcl.errors import BadRecord
from streams.user.images import ImageLimits, decode

try:
    decode(Path(sys.argv[1]), ImageLimits())
except BadRecord as error:
    print(error, error.hint)
"""


def test_without_the_extra_a_phones_photograph_names_it(heic):
    path, _ = heic
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(path)], capture_output=True, text=True, check=True
    )
    assert "'IMG_0001.HEIC' is not an image of a known format" in done.stdout
    assert 'pip install "streamcl[heif]"' in done.stdout


def test_photographs_of_phones_count_as_images_whether_they_can_be_read_or_not():
    assert {".heic", ".heif", ".png", ".jpg"} <= image_suffixes()
