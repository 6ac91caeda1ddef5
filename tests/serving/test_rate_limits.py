"""Token buckets: a burst, then a steady rate, each sender by itself, in bounded memory."""

import pytest

from streamcl.serving.access.rate_limits import MAX_SENDERS, TokenBuckets, sender_of


def test_a_burst_passes_and_then_the_rate():
    now = [100.0]
    buckets = TokenBuckets(2.0, 3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    now[0] += 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] += 1000
    assert [buckets.take("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_many_senders_take_bounded_memory():
    buckets = TokenBuckets(1.0, 1, clock=lambda: 0.0)
    for number in range(MAX_SENDERS + 1):
        assert buckets.take(f"sender {number}") == 0
    assert buckets.take("sender 1") > 0
    assert buckets.take("sender 0") == 0  # it was quiet longest


def test_addresses_of_one_subscriber_are_one_sender():
    assert sender_of("2001:db8:1:2:3::4") == sender_of("2001:db8:1:2:5::6")
    assert sender_of("2001:db8:1:2:3::4") != sender_of("2001:db8:1:3:3::4")
    assert sender_of("unknown") == "unknown"
