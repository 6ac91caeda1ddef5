"""Checks that a live reader keeps what `streamcl.sources.live_reader.LiveReader` promises; no torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from streamcl.events import ForgetRequest
from streamcl.sources.live_reader import Arrival, LiveReader
from streamcl.testing.source_checks import plain_hash, require

EMPTY_POLLS = 3  # polls in a row without a record after which nothing more is expected
MAX_POLLS = 600  # the same while records are missing that are known to be there
MIN_RECORDS = 3  # records, with fewer of which little can be checked


def check_live_reader(
    make_reader: Callable[[], LiveReader], *, timeout: float = 0.2, count: int = MIN_RECORDS
) -> None:
    """Check a reader over the records that have come already: keys, positions, restarts, replays, fetching.

    Whatever number of records was taken, a new reader that opens at that position must bring the others, by
    `poll` or by `replay`. Nothing may be added meanwhile.

    Args:
        make_reader: makes the reader anew, with the same arguments each time. At least 3 records wait for it.
        timeout: seconds of a poll; three in a row without a record are the end.
        count: how many records wait at least. Give it where the first ones may take longer than three polls,
            as from a broker on a busy machine: so many are waited for.

    Raises:
        AssertionError: says which promise is broken, and where.
    """
    reader = make_reader()
    require(isinstance(reader, LiveReader), f"{type(reader).__name__} lacks methods of LiveReader")
    require(bool(reader.name) and isinstance(reader.name, str), "the reader has no name")
    require(bool(reader.guarantee.reason), "the guarantee gives no reason")
    reader.open(None)
    before = plain_hash(reader.position())
    arrivals = _polled(reader, timeout, count)
    require(len(arrivals) >= MIN_RECORDS, f"only {len(arrivals)} records came, so little can be checked")
    require(plain_hash(reader.position()) == before, "polling moved the position: only `advance` may")
    for arrival in arrivals:
        require(json.loads(json.dumps(arrival.key)) == arrival.key, f"the key {arrival.key!r} is not JSON")
    lag = reader.lag()
    require(lag is None or (isinstance(lag, int) and lag >= 0), f"the lag is {lag!r}")
    _check_fetch(reader, arrivals)
    reader.close()
    _check_replays(make_reader, arrivals, timeout)
    _check_restarts(make_reader, arrivals, timeout)  # last: acknowledged records may be removed


def _polled(reader: LiveReader, timeout: float, count: int) -> list[Arrival]:
    """Return what comes until `count` records have come and then none for a few polls, or the reader ends."""
    found, quiet = list[Arrival](), 0
    while quiet < (MAX_POLLS if len(found) < count else EMPTY_POLLS):
        arrivals = reader.poll(timeout)
        if arrivals is None:
            break
        quiet = 0 if arrivals else quiet + 1
        found += arrivals
    return found


def _check_restarts(
    make_reader: Callable[[], LiveReader], arrivals: Sequence[Arrival], timeout: float
) -> None:
    """Require the remaining records after a restart, wherever the position was."""
    reader = make_reader()
    reader.open(None)
    require(_same(_polled(reader, timeout, len(arrivals)), arrivals), "another reader brings other records")
    positions = [reader.position()]
    hashes = [plain_hash(positions[0])]
    for arrival in arrivals:
        reader.advance([arrival.key])
        positions.append(reader.position())
        hashes.append(plain_hash(positions[-1]))
    require([plain_hash(each) for each in positions] == hashes, "a position changed after it was returned")
    reader.close()
    for taken, position in enumerate(positions):
        restarted = make_reader()
        restarted.open(copy.deepcopy(position))
        require(plain_hash(restarted.position()) == hashes[taken], f"position {taken} changed when opened")
        found = _polled(restarted, timeout, len(arrivals) - taken)
        require(_same(found, arrivals[taken:]), f"opened after record {taken}, other records come")
        restarted.acknowledge(position)
        require(not restarted.poll(timeout), f"records came twice after position {taken} was acknowledged")
        restarted.close()


def _check_replays(
    make_reader: Callable[[], LiveReader], arrivals: Sequence[Arrival], timeout: float
) -> None:
    """Require the same records of a replay, and after it those that follow."""
    reader = make_reader()
    reader.open(None)
    head = arrivals[:2]
    replayed = reader.replay([each.key for each in head])
    require(_same(replayed, head), "the replayed records are others than those that were polled")
    reader.advance([each.key for each in head])
    require(
        _same(_polled(reader, timeout, len(arrivals) - 2), arrivals[2:]),
        "after a replay other records follow",
    )
    reader.close()


def _check_fetch(reader: LiveReader, arrivals: Sequence[Arrival]) -> None:
    """Require that `fetch`, where there is one, returns only requested records."""
    if reader.fetch is None:
        return
    named = [each for each in arrivals if isinstance(each.value, Mapping) and "id" in each.value]
    require(bool(named), "the reader fetches by id, but no record has one")
    taken = named[0]
    for arrival in arrivals[: arrivals.index(taken) + 1]:
        reader.advance([arrival.key])
    with closing(reader.fetch([taken.value["id"], "no such id"])) as fetched:
        found = list(fetched)
    for name, value in found:
        require(name == taken.value["id"], f"fetch returned {name!r}, which was not requested")
        require(_comparable(value) == _comparable(taken.value), f"fetch returned another record as {name!r}")


def _same(found: Sequence[Arrival], expected: Sequence[Arrival]) -> bool:
    return [(each.key, _comparable(each.value)) for each in found] == [
        (each.key, _comparable(each.value)) for each in expected
    ]


def _comparable(value: Any) -> Any:
    """Return what of a value can be compared with ==."""
    if isinstance(value, Mapping):
        return {name: _comparable(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, ForgetRequest):
        return value.model_dump(exclude={"id"} - value.model_fields_set)
    return str(value) if isinstance(value, Exception) else value
