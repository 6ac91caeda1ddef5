"""Stored tokens that are drawn: who is stored depends on nobody else, how many on the room alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.events import Sample
from streamcl.memory.latent_replay import LatentReplay
from streamcl.memory.latent_store import LatentStore
from streamcl.storage.plain_state import state_hash

PIXELS = np.zeros((1, 1, 3), np.uint8)


def tokens_of(offset):
    """Tokens by which a sample is known again, in the precision of float16."""
    return torch.full((3, 4), float(offset % 1024))


def offer(replay, offsets):
    samples = [Sample(f"s{offset}", PIXELS, f"class {offset}") for offset in offsets]
    replay.offer(torch.stack([tokens_of(offset) for offset in offsets]), samples, offsets)


def filled(samples, rows, *, without=(), batch=16, **options):
    replay = LatentReplay(LatentStore("float16", b"key", **options), rows)
    for start in range(0, samples, batch):
        here = [o for o in range(start, min(start + batch, samples)) if o not in without]
        if here:
            offer(replay, here)
    return replay


def stored(replay):
    """The offsets of all stored samples, as their labels have them."""
    found = replay.draw(10**6, torch.Generator())
    return [] if found is None else sorted(int(label.split()[1]) for label in found.labels)


def test_what_is_drawn_are_tokens_with_their_labels_none_twice():
    replay = filled(200, rows=1000)
    found = replay.draw(50, torch.Generator().manual_seed(3))
    offsets = [int(label.split()[1]) for label in found.labels]
    assert len(set(offsets)) == 50
    assert torch.equal(found.tokens, torch.stack([tokens_of(offset) for offset in offsets]))


def test_the_generator_alone_decides_what_is_drawn():
    replay = filled(200, rows=1000)
    one, same, other = (replay.draw(9, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.labels == same.labels
    assert one.labels != other.labels


def test_each_is_drawn_as_often_as_the_others():
    replay, generator, counts = filled(40, rows=100), torch.Generator().manual_seed(0), np.zeros(40)
    for _ in range(2000):
        for label in replay.draw(4, generator).labels:
            counts[int(label.split()[1])] += 1
    assert abs(counts - 200).max() < 6 * (200 * 0.9) ** 0.5


def test_of_an_empty_store_nothing_is_drawn_and_of_a_small_one_all():
    replay = filled(0, rows=10)
    assert replay.draw(4, torch.Generator()) is None
    offer(replay, [0, 1, 2])
    assert stored(replay) == [0, 1, 2]


@pytest.mark.parametrize("samples", [500, 4000, 9000])
def test_it_keeps_to_its_room_and_spreads_over_the_stream(samples):
    rows = 400
    found = np.array(stored(filled(samples, rows)))
    assert 0.35 * rows <= len(found) <= 1.2 * rows
    quarters = np.histogram(found, bins=4, range=(0, samples))[0]
    assert quarters.min() > 0.6 * len(found) / 4


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 299), max_size=20), st.integers(20, 400))
def test_nobody_s_place_depends_on_anybody_else(gone, rows):
    whole = stored(filled(300, rows))
    assert stored(filled(300, rows, without=gone)) == [offset for offset in whole if offset not in gone]


def test_what_is_removed_is_drawn_no_more():
    replay = filled(60, rows=100)
    assert replay.remove({3, 5, 70}) == 2
    assert stored(replay) == [offset for offset in range(60) if offset not in {3, 5}]


def test_a_savepoint_brings_back_what_a_batch_has_pushed_out():
    replay = filled(96, rows=100)
    before, undo = state_hash(replay.state_dict()), replay.savepoint()
    offer(replay, range(96, 112))
    offer(replay, range(112, 128))
    assert len(replay) < 90
    undo()
    assert state_hash(replay.state_dict()) == before


def test_a_state_brings_back_what_is_stored_and_which_share(tmp_path):
    first = filled(160, rows=100, segment_rows=8, folder=tmp_path)
    second = LatentReplay(LatentStore("float16", b"key", segment_rows=8, folder=tmp_path), 100)
    second.load_state_dict(first.state_dict())
    for replay in (first, second):
        offer(replay, range(160, 260))
    assert stored(first) == stored(second)
    assert state_hash(first.state_dict()) == state_hash(second.state_dict())


def test_a_replay_without_room_is_refused():
    with pytest.raises(ValueError, match="rows is 0"):
        LatentReplay(LatentStore("int4", b"key"), 0)
