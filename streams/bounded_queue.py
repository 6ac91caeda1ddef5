"""Waiting for room in a bounded queue, for as long as anybody reads it."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import TypeVar

PUT_WAIT = 0.1  # seconds between two looks at whether to stop

_Item = TypeVar("_Item")


def put_until(items: queue.Queue[_Item], item: _Item, stop: threading.Event) -> bool:
    """Put an item into the queue once there is room; return False where `stop` is set before that."""
    with suppress(queue.Full):
        items.put_nowait(item)
        return True
    while not stop.is_set():
        with suppress(queue.Full):
            items.put(item, timeout=PUT_WAIT)
            return True
    return False
