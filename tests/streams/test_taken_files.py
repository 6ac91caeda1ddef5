"""The set of files taken: what a dict of digests would say, in states that never change afterwards."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from streams.live.files import taken_files
from streams.live.files.taken_files import ListedFile, TakenFiles


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(taken_files, "BLOCK", 8)


def digest(data, name="s"):
    keyed = hashlib.blake2b(data, key=hashlib.sha256(name.encode()).digest(), digest_size=8)
    return int.from_bytes(keyed.digest(), "big")


def file(path, version=0, size=10):
    return ListedFile(f"p{path}.jpg", size, version)


def test_it_says_what_a_dict_would_also_after_any_restart():
    rng = np.random.default_rng(0)
    taken, content = TakenFiles("s", {}), {}
    for _ in range(200):
        new = file(int(rng.integers(40)), int(rng.integers(3)))
        taken.add(new)
        content[new.path] = new
        if rng.random() < 0.1:
            taken = TakenFiles("s", taken.state())
        for path in range(45):
            for version in range(3):
                asked = file(path, version)
                known = content.get(asked.path)
                expected = "new" if known is None else "same" if known == asked else "changed"
                assert taken.compare(asked) == expected


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 20])
def test_a_state_holds_salted_digests_in_the_order_of_taking_and_stays_as_it_is(count):
    taken, rows = TakenFiles("s", {}), []
    for number in range(count):
        taken.add(file(number))
        rows.append((digest(f"p{number}.jpg".encode()), digest(b"10 0")))
    state = taken.state()
    assert [len(state[name]) for name in sorted(state)] == [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    again = TakenFiles("s", state)
    for each in (taken, again):
        for number in range(30):
            each.add(file(number, version=1))
    found = [tuple(row) for name in sorted(state) for row in state[name].tolist()]
    assert found == rows
    assert len(again.state()) == -(-(count + 30) // 8)


def test_another_stream_has_other_digests():
    first, other = TakenFiles("s", {}), TakenFiles("t", {})
    for each in (first, other):
        each.add(file(0))
    assert not np.array_equal(first.state()["000000000"], other.state()["000000000"])
