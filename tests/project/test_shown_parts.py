"""The classes that the pages on live sources and on several devices show do what the pages say of them."""

from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path

from documentation import DOCS, blocks
from streams_data import png

from streamcl.sources.delivery import DeliveryGuarantee
from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_writer import SpoolWriter


class Request:
    """An image that somebody has sent; it keeps the numbers that it was confirmed with."""

    def __init__(self, body: bytes, name: str) -> None:
        self.body, self.id = body, name
        self.numbers: list[int] = []

    def confirm(self, number: int) -> None:
        self.numbers.append(number)


def test_a_producer_confirms_what_is_on_disk(tmp_path: Path) -> None:
    stop = threading.Event()
    requests = [Request(png(1), "a"), Request(png(2), "b"), Request(png(1), "a")]
    waiting = iter(requests)

    def next_request() -> Request:
        request = next(waiting)
        if request is requests[-1]:
            stop.set()
        return request

    (block,) = blocks(DOCS / "live_sources.md", "python")
    names = {
        "DeliveryGuarantee": DeliveryGuarantee,
        "SpoolWriter": SpoolWriter,
        "next_request": next_request,
        "threading": threading,
    }
    exec(compile(block, "live_sources.md", "exec"), names)
    spool = Spool(tmp_path / "spool", Retention(reserve=0))
    spool.open()
    try:
        names["Push"]().run(SpoolWriter(spool, "push"), stop)  # type: ignore[operator]
    finally:
        spool.close()
    assert [request.numbers for request in requests] == [[0], [1], [0]]


def test_the_shards_of_ranks_are_the_whole() -> None:
    (block,) = blocks(DOCS / "several_devices.md", "python")
    names: dict[str, object] = {}
    exec(compile(block, "several_devices.md", "exec"), names)
    inbox = names["Inbox"]([f"{number}.png" for number in range(7)])  # type: ignore[operator]
    shards = [inbox.shard(rank, 3) for rank in range(3)]
    assert sorted(chain(*shards)) == sorted(inbox)
