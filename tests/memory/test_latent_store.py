"""The store of latents: who is stored depends on nobody else, rows are copies in few bytes, and can go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.memory.latent_store import LatentSchedule, LatentStore
from streamcl.memory.quantised_tokens import QuantisedTokens
from streamcl.storage.plain_state import state_hash

DTYPES = ("int4", "int8", "float16")


def tokens_of(count, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (count, 5, 8)).astype(np.float32)


def filled(dtype="int8", batches=4, size=6, share=1.0, **options):
    store = LatentStore(dtype, b"key", **options)
    for batch in range(batches):
        names = [f"s{batch * size + row}" for row in range(size)]
        rows = [row for row, name in enumerate(names) if store.place(name) < share]
        store.add(
            tokens_of(size, batch)[rows],
            ["ant"] * len(rows),
            [batch * size + row for row in rows],
            [store.place(names[row]) for row in rows],
            trainings=batch // 2,
            weight=1,
        )
    return store


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_come_back_nearly_as_they_were(dtype):
    tokens = tokens_of(7)
    tokens[2, 1] = 0.0
    stored = QuantisedTokens.of(tokens, dtype)
    error = np.abs(stored.restored() - tokens) / np.abs(tokens).max(axis=-1, keepdims=True).clip(1e-9)
    assert error.max() <= {"int4": 0.4, "int8": 1 / 254 + 1e-6, "float16": 1e-3}[dtype]
    assert np.linalg.norm(stored.restored() - tokens) < 0.15 * np.linalg.norm(tokens)
    assert stored.nbytes == (7 * 5 * 8 * {"int4": 4, "int8": 8, "float16": 16}[dtype] // 8) + (
        0 if dtype == "float16" else 7 * 5 * 4
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_its_sample_alone(dtype):
    tokens = tokens_of(9)
    whole = QuantisedTokens.of(tokens, dtype)
    for row in range(len(tokens)):
        alone = QuantisedTokens.of(tokens[row : row + 1], dtype)
        assert np.array_equal(alone.codes[0], whole.codes[row])
        assert np.array_equal(alone.restored()[0], whole.restored()[row])
        assert np.array_equal(whole[[row]].restored(), alone.restored())


def test_a_token_beyond_the_range_of_float16_stays_finite():
    assert np.isfinite(QuantisedTokens.of(np.full((1, 2, 4), 1e6, np.float32), "float16").restored()).all()


def test_places_are_spread_evenly_and_depend_on_the_key():
    one, other = LatentStore("int8", b"one"), LatentStore("int8", b"other")
    places = np.array([one.place(f"s{k}") for k in range(4000)])
    assert 0 <= places.min() < places.max() < 1
    assert abs((places < 0.25).mean() - 0.25) < 0.03
    assert abs(np.corrcoef(places, [other.place(f"s{k}") for k in range(4000)])[0, 1]) < 0.05


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    st.sets(st.integers(0, 23), max_size=23), st.sampled_from([1.0, 0.5, 0.25]), st.sampled_from([1, 3, 99])
)
def test_what_remains_is_a_store_that_never_had_the_others(gone, share, segment_rows):
    store = filled(segment_rows=segment_rows)
    never = LatentStore("int8", b"key", segment_rows=segment_rows)
    entered = {offset: group.trainings for group in store.groups for offset in group.offsets.tolist()}
    assert sorted(store.remove(gone)) == sorted(entered[offset] for offset in gone)
    for group in filled().groups:
        left = group.select(np.flatnonzero(~np.isin(group.offsets, sorted(gone))))
        never.groups = (*never.groups, left) if len(left) else never.groups
    assert state_hash(store.state_dict()) == state_hash(never.state_dict())
    for each in (store, never):
        each.thin(share, trainings=3, weight=round(1 / share))
    assert state_hash(store.state_dict()) == state_hash(never.state_dict())
    assert all(place < share for group in store.groups for place in group.places)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_is_restored_bit_for_bit(dtype):
    store, other = filled(dtype), LatentStore(dtype, b"key")
    other.load_state_dict(store.state_dict())
    assert state_hash(other.state_dict()) == state_hash(store.state_dict())
    assert [len(group) for group in other.groups] == [len(group) for group in store.groups]
    other.load_state_dict(LatentStore(dtype, b"key").state_dict())
    assert len(other) == 0


@given(st.integers(1, 5000), st.integers(1, 20_000))
def test_no_period_needs_more_room_than_there_is(first, rows):
    schedule = LatentSchedule(first, rows)
    stored = 0.0  # expected, of those that the last training has used
    for period in range(12):
        weight = schedule.weight(period)
        came = schedule.position(period) - (schedule.position(period - 1) if period else 0)
        assert stored + came / weight <= rows * (1 + 1e-9)
        stored = schedule.position(period) / weight
        assert period == 0 or weight % schedule.weight(period - 1) == 0
        assert 3 * schedule.position(period) > rows * weight or weight == 1  # and it is not half empty
