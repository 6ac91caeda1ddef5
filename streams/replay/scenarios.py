"""Orders in which a labelled collection is streamed: as stored, shuffled, by classes, by domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from streamcl.errors import ConfigError, nearest
from streamcl.registry import call_with
from streams.replay.collection import Collection, Indices


@dataclass(frozen=True, slots=True)
class ScenarioPart:
    """The content of one part of a stream: some classes (() is all) in some domains (() is all)."""

    name: str
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The order of a stream.

    indices: int64 [N], positions in the train collection. shifts: offsets at which the classes or the domain
    change. parts: the content of each stretch, for held-out evaluation; () where the stream has no parts.
    """

    indices: Indices
    shifts: tuple[int, ...] = ()
    parts: tuple[ScenarioPart, ...] = ()


def as_is(train: Collection) -> Order:
    """Return the collection's own order; it shifts where one whole domain ends and the next begins."""
    return Order(np.arange(len(train), dtype=np.int64), _domain_changes(train))


def iid(train: Collection, seed: int = 0) -> Order:
    """Return a seeded shuffle: a stationary stream, without shifts."""
    return Order(np.random.default_rng(seed).permutation(len(train)).astype(np.int64))


def disjoint(train: Collection, parts: int = 5, seed: int = 0) -> Order:
    """Return the classes, permuted, in `parts` equal groups, one after the other, each shuffled.

    Where the classes do not divide evenly the first groups have one more. Unlabelled images are left out.
    """
    rng = np.random.default_rng(seed)
    present = _classes_present(train, parts)
    groups = np.array_split(rng.permutation(present), parts)
    pieces = [rng.permutation(np.flatnonzero(np.isin(train.labels, group))) for group in groups]
    return _concatenated(pieces, _class_parts(train, groups))


def si_blurry(
    train: Collection,
    parts: int = 5,
    disjoint_percent: float = 50,
    blurry_percent: float = 10,
    seed: int = 0,
) -> Order:
    """Return an order with stochastic incremental blurry boundaries (arXiv 2308.09303, section 3.1).

    `disjoint_percent` (N) of the permuted classes belong to one part only, the others are blurry; both are
    cut into parts at random points, so parts differ in size and may be empty. `blurry_percent` (M) of the
    blurry images are pooled from the parts in random amounts, shuffled, and handed back in the same amounts:
    every part keeps its size. A part that has fewer images than the amount drawn for it gives all it has and
    the next parts give the rest, so that exactly M % is pooled.
    """
    for name, value in (("disjoint_percent", disjoint_percent), ("blurry_percent", blurry_percent)):
        if not 0 <= value <= 100:
            raise ConfigError(f"{name} is {value}, expected a percentage", hint="give 0 to 100")
    rng = np.random.default_rng(seed)
    present = rng.permutation(_classes_present(train, parts))
    kept = int(len(present) * disjoint_percent / 100)
    own, blurry = _cut(rng, present[:kept], parts), _cut(rng, present[kept:], parts)
    blurred = blur([_images_of(rng, train, group) for group in blurry], blurry_percent, rng)
    pieces = [
        rng.permutation(np.concatenate([_images_of(rng, train, group), images]))
        for group, images in zip(own, blurred, strict=True)
    ]
    groups = [np.concatenate(pair) for pair in zip(own, blurry, strict=True)]
    return _concatenated(pieces, _class_parts(train, groups))


def domain_incremental(
    train: Collection, order: Sequence[str] | None = None, seed: int | None = None
) -> Order:
    """Return one domain after the other, in `order` or in the collection's.

    With a seed each domain is shuffled; without one its images keep their order (frames of a film).
    """
    names = _domain_names(train, order)
    pieces = [train.where(domains=(name,)) for name in names]
    if seed is not None:
        rng = np.random.default_rng(seed)
        pieces = [rng.permutation(piece) for piece in pieces]
    return _concatenated(pieces, [ScenarioPart(name, domains=(name,)) for name in names])


def new_instances_and_classes(train: Collection, parts: int = 10, seed: int = 0) -> Order:
    """Return CORe50's NIC (arXiv 1705.03550): parts are one class group in one domain, in random order.

    `parts` is the number of class groups. Images within a part keep their order.
    """
    rng = np.random.default_rng(seed)
    names = _domain_names(train, None)
    groups = np.array_split(rng.permutation(_classes_present(train, parts)), parts)
    cells = [(name, tuple(train.classes[code] for code in group)) for name in names for group in groups]
    cells = [cells[index] for index in rng.permutation(len(cells))]
    pieces = [train.where(classes, (name,)) for name, classes in cells]
    parts_of = [ScenarioPart(f"{n} {name}", classes, (name,)) for n, (name, classes) in enumerate(cells, 1)]
    return _concatenated(pieces, parts_of)


def segments(
    train: Collection, parts: Sequence[ScenarioPart], seed: int = 0, length: int | None = None
) -> Order:
    """Return the given parts one after the other, each shuffled and, with `length`, cut to so many images."""
    rng = np.random.default_rng(seed)
    pieces = [rng.permutation(train.where(part.classes, part.domains))[:length] for part in parts]
    for part, piece in zip(parts, pieces, strict=True):
        if not len(piece):
            raise ConfigError(f"{train.name}: the part {part.name!r} has no image")
    return _concatenated(pieces, parts)


_ALL = (as_is, iid, disjoint, si_blurry, domain_incremental, new_instances_and_classes)
SCENARIOS: dict[str, Callable[..., Order]] = {each.__name__: each for each in _ALL}


def order_for(name: str, train: Collection, args: Mapping[str, Any] | None = None, seed: int = 0) -> Order:
    """Return the order of the named scenario; `seed` is used where it takes one that args do not give.

    Raise ConfigError for an unknown scenario or argument, with the nearest name, and for impossible values.
    """
    if name not in SCENARIOS:
        raise ConfigError(f"no scenario is named {name!r}", hint=nearest(name, SCENARIOS))
    order: Order = call_with(SCENARIOS[name], f"scenario {name!r}", args or {}, train, offered={"seed": seed})
    return order


def _concatenated(pieces: Sequence[Indices], parts: Sequence[ScenarioPart]) -> Order:
    """Concatenate the pieces; the stream shifts where each but the first begins, empty ones left out."""
    filled = [piece for piece in pieces if len(piece)]
    indices = np.concatenate([*filled, np.zeros(0, np.int64)]).astype(np.int64)
    return Order(indices, tuple(accumulate(len(piece) for piece in filled))[:-1], tuple(parts))


def _classes_present(train: Collection, parts: int) -> Indices:
    """Return the codes of the classes with images, ascending. Raise ConfigError for fewer than `parts`."""
    present = np.unique(train.labels[train.labels >= 0])
    if not isinstance(parts, int) or not 1 <= parts <= len(present):
        raise ConfigError(
            f"{train.name}: {parts} parts were asked for and {len(present)} classes have images",
            hint=f"parts must be from 1 to {len(present)}",
        )
    return present.astype(np.int64)


def _class_parts(train: Collection, groups: Sequence[Indices]) -> list[ScenarioPart]:
    names = [tuple(train.classes[code] for code in group) for group in groups]
    return [ScenarioPart(f"part {number}", each) for number, each in enumerate(names, 1)]


def _images_of(rng: np.random.Generator, train: Collection, codes: Indices) -> Indices:
    return rng.permutation(np.flatnonzero(np.isin(train.labels, codes))).astype(np.int64)


def _cut(rng: np.random.Generator, items: Indices, parts: int) -> list[Indices]:
    """Return items in `parts` consecutive pieces, cut at random sorted points; pieces may be empty."""
    return np.split(items, np.sort(rng.integers(0, max(len(items), 1), parts - 1)))


def blur(pieces: Sequence[Indices], percent: float, rng: np.random.Generator) -> list[Indices]:
    """Pool `percent` of all images from the pieces, shuffle them, and give each piece as many back.

    Args:
        pieces: indices of images, int64 [n] each.
        percent: share of all images that is pooled, 0 to 100.
        rng: shuffles the pool.

    Returns:
        The pieces with their images of afterwards, int64 [n] each.
    """
    total = int(sum(map(len, pieces)) * percent / 100)
    asked = [len(piece) for piece in _cut(rng, np.arange(total), len(pieces))]
    amounts = fit_to_capacity(asked, [len(piece) for piece in pieces])
    pool = rng.permutation(np.concatenate([p[:n] for p, n in zip(pieces, amounts, strict=True)]))
    back = np.split(pool, list(accumulate(amounts))[:-1])
    return [
        np.concatenate([piece[amount:], given])
        for piece, amount, given in zip(pieces, amounts, back, strict=True)
    ]


def fit_to_capacity(wanted: Sequence[int], room: Sequence[int]) -> list[int]:
    """Return amounts with the sum of `wanted`, none above its room; the excess goes to the next.

    >>> fit_to_capacity([5, 1, 0], [3, 9, 9])
    [3, 3, 0]
    """
    amounts = [min(each, most) for each, most in zip(wanted, room, strict=True)]
    rest = sum(wanted) - sum(amounts)
    for index, most in enumerate(room):
        more = min(rest, most - amounts[index])
        amounts[index] += more
        rest -= more
    return amounts


def _domain_names(train: Collection, order: Sequence[str] | None) -> tuple[str, ...]:
    if train.domains is None:
        raise ConfigError(f"{train.name} has no domains", hint="use the scenario disjoint, si_blurry or iid")
    seen = set(np.unique(train.domains.index).tolist())
    present = tuple(name for code, name in enumerate(train.domains.names) if code in seen)
    unknown = [name for name in order or () if name not in present]
    if unknown:
        raise ConfigError(f"{train.name} has no domain {unknown[0]!r}", hint=f"it has: {', '.join(present)}")
    if order is not None and len(set(order)) != len(order):
        raise ConfigError(f"a domain comes twice in the order {', '.join(order)}")
    return tuple(order) if order is not None else present


def _domain_changes(train: Collection) -> tuple[int, ...]:
    """Return where a domain ends for good; () where domains are interleaved, without a shift."""
    if train.domains is None or not len(train):
        return ()
    changes = np.flatnonzero(np.diff(train.domains.index)) + 1
    domains_present = len(np.unique(train.domains.index))
    return tuple(changes.tolist()) if len(changes) == domains_present - 1 else ()
