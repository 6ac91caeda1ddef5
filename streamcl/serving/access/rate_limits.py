"""Token buckets: how many requests a sender may make in a time, each sender by itself."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_SENDERS = 10_000
"""Senders that are remembered; beyond them the one that was quiet longest is, and begins anew."""
IPV6_SUBSCRIBER = 64
"""Bits of the prefix that one subscriber has for itself, and may choose addresses in."""


class TokenBuckets:
    """A bucket for each sender, which holds `burst` requests and fills at `rate` a second."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, sender: str) -> float:
        """Take a request out of a sender's bucket; return 0, or the seconds until there is one in it."""
        now = self._clock()
        level, then = self._levels.pop(sender, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        taken = level >= 1
        self._levels[sender] = (level - 1 if taken else level, now)
        if len(self._levels) > MAX_SENDERS:
            self._levels.popitem(last=False)
        return 0.0 if taken else (1 - level) / self._rate


def sender_of(address: str) -> str:
    """Return the name under which requests from an address are counted: of IPv6, its network of 64 bits.

    >>> sender_of("192.0.2.7"), sender_of("2001:db8::1"), sender_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_SUBSCRIBER), strict=False))
