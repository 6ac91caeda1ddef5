"""Drawings of 28 concepts in 7 styles, out of the icon fonts in the wheel qtawesome."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streamcl.events import Pixels
from streams.datasets.layout import split_by_group
from streams.download.pip_assets import QTAWESOME, Member, fetch_members
from streams.replay.collection import Collection, Indices, groups_of

# Each concept has drawings in all seven styles. The first word of an icon's name decides its concept:
# "cloud-lock" is a cloud, and "archive-lock" has none.
CONCEPTS: Mapping[str, tuple[str, ...]] = {
    "arrow": ("arrow", "arrows"),
    "battery": ("battery",),
    "bell": ("bell", "alarm"),
    "book": ("book", "bookmark"),
    "calendar": ("calendar",),
    "camera": ("camera", "video"),
    "car": ("car", "truck", "bus"),
    "chart": ("chart", "bar", "pie"),
    "chat": ("chat", "message", "comment", "comments", "forum"),
    "clock": ("clock", "timer", "time", "watch", "hourglass"),
    "cloud": ("cloud",),
    "eye": ("eye",),
    "face": ("face", "emoticon", "emotion", "smiley"),
    "file": ("file", "note"),
    "folder": ("folder",),
    "hand": ("hand", "hands", "thumb", "thumbs"),
    "home": ("home", "house"),
    "lock": ("lock", "unlock"),
    "mail": ("mail", "email", "envelope"),
    "map": ("map", "compass", "globe", "earth"),
    "pencil": ("pencil", "pen"),
    "person": ("person", "user", "users", "account"),
    "phone": ("phone", "cellphone", "smartphone"),
    "play": ("play", "pause", "skip"),
    "shield": ("shield",),
    "shop": ("shop", "store", "shopping", "bag"),
    "star": ("star",),
    "weather": ("weather", "sun", "moon"),
}
FILLED = ("fontawesome", "material", "remix-fill", "phosphor-fill")
OUTLINED = ("material-outline", "remix-line", "phosphor")
STYLES = (*FILLED, *OUTLINED)
PIXELS = 64
GLYPH_SIDE = 52  # the longer side of a drawing, in pixels


@dataclass(frozen=True, slots=True)
class Font:
    """One font file with its character map, and which ends of names mean which style."""

    family: str
    ttf: Member
    charmap: Member
    styles: Mapping[str, str]  # end of the name -> style; "" for names without any such end
    ignored: tuple[str, ...] = ()


def _member(name: str, sha256: str) -> Member:
    return Member(QTAWESOME, f"qtawesome/fonts/{name}", sha256)


FONTS = (
    Font(
        "fontawesome",
        _member(
            "fontawesome6-solid-webfont-6.7.2.ttf",
            "220d6d592b543eb991b8c11137ef0082c27d6ff6fdaa25e4335945f57a487c6c",
        ),
        _member(
            "fontawesome6-solid-webfont-charmap-6.7.2.json",
            "48607f738a71763a3557abe077133ff36b48b1bfa27d2f0d25b5a5c1f8a89127",
        ),
        {"": "fontawesome"},
    ),
    Font(
        "material",
        _member(
            "materialdesignicons6-webfont-6.9.96.ttf",
            "be825c1294d3c4f046c8e496b18f8f0c7d2864e339c81bdab9297f17ffac1938",
        ),
        _member(
            "materialdesignicons6-webfont-charmap-6.9.96.json",
            "6317242191c4c889dec2c174f98dda0f309745d28c23c50a19bbbaf02df930a9",
        ),
        {"": "material", "outline": "material-outline"},
    ),
    Font(
        "remix",
        _member("remixicon-2.5.0.ttf", "0ac8bc3ccea26ed47e96844ef26675969c669714d723c081101e51799d501520"),
        _member(
            "remixicon-charmap-2.5.0.json", "b90a112e76fc5f7f64d20bb5ec422fc9c7511d1f32be61c0f7d3b7a3933d4c0a"
        ),
        {"fill": "remix-fill", "line": "remix-line"},
    ),
    Font(
        "phosphor",
        _member("phosphor-1.3.0.ttf", "351874de64758f3b7fb405cd078ac0ed5ffb9717fb5b9b10013ac03d4c13680b"),
        _member(
            "phosphor-charmap-1.3.0.json", "cfb725868f72d741422002f1ed4f870bdddebc32344a6407b8becb6c841b92ca"
        ),
        {"": "phosphor", "fill": "phosphor-fill"},
        ignored=("bold", "light", "thin"),  # the same drawings in other line widths
    ),
)
ICON_FILES = tuple(chain.from_iterable((font.ttf, font.charmap) for font in FONTS))


@dataclass(frozen=True, slots=True)
class Icon:
    """One drawing of the collection: `stem` is its name without the style, shared by its variants."""

    family: str
    style: str
    stem: str
    concept: str
    character: str

    @property
    def id(self) -> str:
        """Stable: the style and the name that the font's authors gave."""
        return f"icons/{self.style}/{self.stem}"


def icons(
    max_per_concept: int = 40, test_percent: float = 25, seed: int = 0
) -> tuple[Collection, Collection]:
    """Draw train and test, black on white, 64 x 64, at most `max_per_concept` of a concept per font family.

    Variants of one drawing (filled and outlined) are on the same side, so that no test drawing has been
    learned in another style. Domains are the seven styles.
    """
    paths = fetch_members(ICON_FILES)
    fonts = dict(zip((font.family for font in FONTS), paths[::2], strict=True))
    listed = [icon for font, path in zip(FONTS, paths[1::2], strict=True) for icon in _listed(font, path)]
    stems = groups_of([f"{icon.family}/{icon.concept}/{icon.stem}" for icon in listed])
    cells = groups_of([name.rpartition("/")[0] for name in stems.names])  # family and concept of each stem
    kept = _at_most(cells.index, max_per_concept, seed)
    test = kept[split_by_group(cells.index[kept], cells.names, test_percent, seed)]
    sides = (np.flatnonzero(np.isin(stems.index, side)) for side in (np.setdiff1d(kept, test), test))
    train, held = (_collection([listed[index] for index in side], fonts) for side in sides)
    return train, held


def draw_glyph(font: Path, character: str) -> Pixels | None:
    """Draw the glyph in black on white, uint8 [64, 64], centred, 52 pixels long; None where it is blank."""
    page = Image.new("L", (4 * PIXELS, 4 * PIXELS), 0)
    middle = (2 * PIXELS, 2 * PIXELS)
    ImageDraw.Draw(page).text(middle, character, fill=255, font=_font(font, 2 * PIXELS), anchor="mm")
    ink = page.getbbox()  # measured, since a font's own boxes include the room around the glyph
    if ink is None:
        return None
    glyph = page.crop(ink)
    scale = GLYPH_SIDE / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    picture = Image.new("L", (PIXELS, PIXELS), 255)
    corner = ((PIXELS - size[0]) // 2, (PIXELS - size[1]) // 2)
    picture.paste(0, corner, glyph.resize(size, Image.Resampling.BOX))
    return np.asarray(picture)


def concept_of(name: str) -> str | None:
    """Return the concept that an icon's name begins with, or None; shapes are skipped.

    >>> concept_of("circle-user"), concept_of("archive-lock")
    ('person', None)
    """
    words = (word for word in name.split("-") if word not in ("circle", "square"))
    return _CONCEPT.get(next(words, ""))


_CONCEPT = {word: concept for concept, words in CONCEPTS.items() for word in words}


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _listed(font: Font, charmap: Path) -> Iterator[Icon]:
    """Yield the font's icons that show a concept, by name; a glyph with several names counts once a style."""
    seen: set[str] = set()
    for name, code in sorted(json.loads(charmap.read_text(encoding="utf-8")).items()):
        stem, _, end = name.rpartition("-")
        if end not in font.styles:
            stem, end = name, ""
        concept = concept_of(stem)
        named_so = end in font.styles and name.rpartition("-")[2] not in font.ignored
        if concept is None or not named_so or code in seen:
            continue
        seen.add(code)
        yield Icon(font.family, font.styles[end], stem, concept, chr(int(code, 16)))


def _at_most(owner: Indices, limit: int, seed: int) -> Indices:
    """Return the positions (ascending) of at most `limit` of each owner, seeded."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(owner == code))[:limit] for code in np.unique(owner)]
    return np.sort(np.concatenate(chosen))


def _collection(listed: Sequence[Icon], fonts: Mapping[str, Path]) -> Collection:
    pictures = [draw_glyph(fonts[icon.family], icon.character) for icon in listed]
    shown = [icon for icon, picture in zip(listed, pictures, strict=True) if picture is not None]
    labels = groups_of([icon.concept for icon in shown], tuple(CONCEPTS))
    return Collection(
        name="icons",
        images=np.stack([picture for picture in pictures if picture is not None]),
        labels=labels.index,
        classes=labels.names,
        ids=tuple(icon.id for icon in shown),
        domains=groups_of([icon.style for icon in shown], STYLES),
    )
