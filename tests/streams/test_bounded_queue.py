"""A thread that waits for room in a queue stops when it must, and loses nothing where there is room."""

from __future__ import annotations

import queue
import threading

from streams.bounded_queue import put_until


def test_it_waits_for_room_until_it_must_stop():
    items, stop = queue.Queue(1), threading.Event()
    assert put_until(items, 1, stop)
    found = []
    thread = threading.Thread(target=lambda: found.extend(put_until(items, k, stop) for k in (2, 3)))
    thread.start()
    assert [items.get(timeout=60) for _ in range(2)] == [1, 2]
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert (items.qsize(), found[0]) == (1, True)
    assert not put_until(items, 4, stop)
    items.get()
    assert put_until(items, 5, stop)
