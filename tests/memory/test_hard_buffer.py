"""The hard buffer holds the hardest samples, forgets them on request, and survives a round trip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.events import Sample
from streamcl.memory.hard_buffer import HardBuffer

losses_of_batches = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")]), max_size=6), max_size=6
)


def sample(i, side=2):
    pixels = np.full((side, side + 1, 3), i % 256, np.uint8)
    return Sample(str(i), pixels, f"class{i % 3}", subject=None if i % 2 else f"s{i}", domain="d")


def filled(batches, capacity=4):
    buffer, i = HardBuffer(capacity), 0
    for losses in batches:
        buffer.update([sample(i + k, 1 + k) for k in range(len(losses))], losses)
        i += len(losses)
    return buffer


def ids(buffer):
    return [s.id for s in buffer.samples]


@given(losses_of_batches)
def test_it_holds_the_hardest_samples_of_all_offered_and_of_equals_the_oldest(batches):
    offered = [loss for batch in batches for loss in batch]
    finite = [(-loss, i) for i, loss in enumerate(offered) if np.isfinite(loss)]
    assert ids(filled(batches)) == [str(i) for _, i in sorted(finite)[:4]]


def test_it_holds_samples_not_batches():
    buffer = filled([[1.0] * 64, [2.0] * 64])
    assert len(buffer) == 4


def test_a_sample_offered_again_is_held_once_with_its_new_loss():
    buffer = HardBuffer(3)
    buffer.update([sample(1), sample(2)], [5.0, 1.0])
    buffer.update([sample(1)], [0.5])
    assert ids(buffer) == ["2", "1"]
    assert buffer.losses == (1.0, 0.5)


def test_refreshed_losses_count_and_a_loss_that_is_not_finite_leaves_the_old_one():
    buffer = filled([[3.0, 2.0, 1.0]])
    buffer.refresh([0.1, float("nan"), 9.0])
    assert ids(buffer) == ["2", "1", "0"]
    assert buffer.losses == (9.0, 2.0, 0.1)


def test_purged_samples_are_gone_from_the_state_too():
    buffer = filled([[3.0, 2.0, 1.0]])
    buffer.purge(lambda s: s.subject == "s2")
    assert ids(buffer) == ["0", "1"]
    assert "s2" not in buffer.state_dict()["subject"]


@given(losses_of_batches, losses_of_batches)
def test_a_restored_buffer_goes_on_as_the_one_that_was_saved(before, after):
    buffer, twin = filled(before), HardBuffer(4)
    twin.load_state_dict(buffer.state_dict())
    for b in (buffer, twin):
        for k, losses in enumerate(after):
            b.update([sample(100 + 10 * k + j) for j in range(len(losses))], losses)
    one, other = buffer.state_dict(), twin.state_dict()
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])


def test_as_many_losses_as_samples_are_demanded():
    with pytest.raises(ValueError, match="shorter"):
        HardBuffer(4).update([sample(1), sample(2)], [1.0])
    with pytest.raises(ValueError, match="capacity"):
        HardBuffer(-1)
