"""The store of samples that wait for labels: lossless, bounded, and bit-equal after a restart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import picture

from streamcl.events import Prediction, Sample
from streamcl.memory import waiting_samples
from streamcl.memory.waiting_samples import WaitingSample, WaitingSamples
from streamcl.storage.plain_state import state_hash


def entry(number, time=None, image=None):
    pixels = picture("ant", number) if image is None else image
    sample = Sample(f"s{number}", pixels, None, f"p{number}", "d", "user")
    return WaitingSample(sample, number, Prediction("ant" if number % 2 else None, number / 7), time)


def filled(count, **limits):
    store = WaitingSamples(**{"max_samples": 100, "max_bytes": 10**6, **limits})
    for number in range(count):
        store.put(entry(number, float(number)))
    return store


def test_a_sample_comes_back_as_it_was():
    store = filled(3)
    found, expected = store.take("s1"), entry(1, 1.0)
    assert np.array_equal(found.sample.image, expected.sample.image)
    assert (found.offset, found.prediction, found.time) == (1, Prediction("ant", 1 / 7), 1.0)
    assert (found.sample.subject, found.sample.domain, found.sample.privacy) == ("p1", "d", "user")
    assert store.take("s1") is None
    assert len(store) == 2


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 255))
def test_pixels_are_kept_without_loss(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    store = filled(0)
    store.put(entry(0, image=image))
    found = store.take("s0").sample.image
    assert found.dtype == np.uint8
    assert np.array_equal(found, image)


def test_of_two_samples_with_one_id_the_first_waits():
    store = filled(2)
    store.put(WaitingSample(entry(1).sample, 77, Prediction("bee", 1.0), None))
    assert store.take("s1").offset == 1


def test_the_oldest_leave_by_number_by_bytes_and_by_time():
    store = filled(5, max_samples=3)
    assert store.evict() == 2
    assert [f"s{k}" in store for k in range(5)] == [False, False, True, True, True]
    size = filled(1).bytes
    store = filled(5, max_bytes=3 * size)
    assert 1 <= store.evict() <= 4
    assert store.bytes <= 3 * size
    store = filled(5, wait=2.0)
    assert store.expire(5.0) == 3
    assert store.expire(5.0) == 0
    assert store.expire(None) == 0
    assert filled(5).expire(1e9) == 0


def test_whatever_order_the_clock_gives_the_oldest_times_expire(monkeypatch):
    monkeypatch.setattr(waiting_samples, "MAX_REMOVED_TIMES", 4)
    rng = np.random.default_rng(0)
    store, waiting = filled(0, wait=10.0), {}
    for number in range(400):
        time = None if rng.random() < 0.1 else float(number + rng.integers(-30, 30))
        store.put(entry(number, time))
        waiting[f"s{number}"] = time
        if rng.random() < 0.6:
            name = str(rng.choice(list(waiting)))
            store.take(name)
            del waiting[name]
        if rng.random() < 0.1:
            again = filled(0, wait=10.0)
            again.load_state_dict(store.state_dict())
            store = again
        gone = {name for name, time in waiting.items() if time is not None and time < number - 10.0}
        assert store.expire(float(number)) == len(gone)
        waiting = {name: time for name, time in waiting.items() if name not in gone}
        assert all(name in store for name in waiting)
        assert len(store) == len(waiting)


def test_a_restored_store_is_the_same_and_empties_with_an_empty_state():
    store = filled(6)
    store.take("s2")
    again = filled(1)
    again.load_state_dict(store.state_dict())
    assert state_hash(again.state_dict()) == state_hash(store.state_dict())
    assert again.bytes == store.bytes
    assert np.array_equal(again.take("s5").sample.image, entry(5).sample.image)
    again.load_state_dict({})
    assert len(again) == again.bytes == 0


def test_limits_below_one_are_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        WaitingSamples(0, 1)
