"""What one process does alone, and what travels between ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rank_runs import environments

from streamcl.distributed.process_group import SINGLE_PROCESS, launched
from streamcl.distributed.torch_process_group import PLACEHOLDER, TorchProcessGroup
from streamcl.errors import DistributedError
from streamcl.events import NO_PIXELS, Sample
from streamcl.sources.remote_sample import RemoteSample


def samples(count: int) -> list[Sample]:
    return [Sample(f"s{i}", np.zeros((4, 4, 3), np.uint8), "a") for i in range(count)]


def test_one_process_is_the_identity():
    rows, given = torch.randn(3, 2, requires_grad=True), samples(3)
    gradients = {"head": rows}
    assert SINGLE_PROCESS.all_gather_rows(rows, given) is rows
    assert SINGLE_PROCESS.local_samples(given) is given
    assert SINGLE_PROCESS.scatter(given) is given
    assert SINGLE_PROCESS.fetch_pixels(given, given) is given
    assert SINGLE_PROCESS.count_once(rows) is rows
    assert SINGLE_PROCESS.all_reduce_gradients(gradients, replicated={"head"}) == gradients
    assert SINGLE_PROCESS.all_gather_object(1) == [1]
    assert SINGLE_PROCESS.broadcast_object(1) == 1
    assert SINGLE_PROCESS.is_main
    assert not launched()


@pytest.fixture
def torch_ranks(monkeypatch):
    """A group of one process over gloo."""
    for name, value in environments(1)[0].items():
        monkeypatch.setenv(name, value)
    with TorchProcessGroup(timeout=300) as ranks:
        yield ranks


def test_values_of_every_size_travel(torch_ranks):
    for size in (0, 1, 4096, 1 << 20):
        value = {"bytes": b"x" * size, "array": np.arange(3)}
        for found in (*torch_ranks.all_gather_object(value), torch_ranks.broadcast_object(value)):
            assert found["bytes"] == value["bytes"]
            np.testing.assert_array_equal(found["array"], value["array"])


def test_rows_keep_their_values_and_their_graph(torch_ranks):
    rows = torch.randn(5, 2, requires_grad=True)  # two more than there are samples
    joined = torch_ranks.all_gather_rows(rows, samples(3))
    assert torch.equal(joined, rows[:3])
    (joined * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [1, 2, 3, 0, 0]
    assert torch_ranks.all_gather_rows(rows, []).shape == (0, 2)


def test_gradients_come_back_by_name_and_shape(torch_ranks):
    gradients = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    total = torch_ranks.all_reduce_gradients(gradients, replicated={"b"})
    assert list(total) == ["a", "b"]
    assert all(torch.equal(total[name], gradients[name]) for name in gradients)
    assert torch_ranks.all_reduce_gradients({}) == {}


def test_a_share_is_never_empty(torch_ranks):
    (theirs,) = [RemoteSample.of(sample, 1) for sample in samples(1)]
    assert torch_ranks.local_samples([theirs]) == [PLACEHOLDER]
    assert theirs.image is NO_PIXELS
    (mine,) = samples(1)
    assert torch_ranks.local_samples([theirs, mine]) == [mine]
    assert torch_ranks.scatter([mine]) == [mine]


def test_an_address_where_nobody_answers_is_an_error_of_ours(monkeypatch):
    for name, value in {**environments(2)[1], "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match="lost contact with the others"):
        TorchProcessGroup(timeout=1)
