"""Importance is a mean of per-sample squared gradients, and its penalty pulls on what was important."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streamcl.memory.importance import Importance, squared_gradients


def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=generator)
    y = torch.tensor([0, 1, 1, 0, 1])
    weight = torch.randn(2, 3, generator=generator, requires_grad=True)
    return x, y, weight


def test_gradients_are_squared_per_sample_and_not_of_the_batch():
    x, y, weight = problem()
    found = squared_gradients(lambda i: F.cross_entropy(x[i] @ weight.T, y[i]), 5, {"w": weight})["w"]
    each = torch.zeros_like(weight)
    for i in range(5):
        p = (x[i] @ weight.T).softmax(0) - F.one_hot(y[i], 2)
        each += (p[:, None] * x[i]) ** 2 / 5
    torch.testing.assert_close(found, each.detach())
    (of_batch,) = torch.autograd.grad(F.cross_entropy(x @ weight.T, y), weight)
    assert (found > of_batch**2).all()
    assert weight.grad is None


def test_every_sample_counts_and_one_that_is_not_finite_is_left_out():
    x, y, weight = problem()

    def loss_of(i):
        loss = F.cross_entropy(x[i % 5] @ weight.T, y[i % 5])
        return loss * float("nan") if i == 5 else loss

    five = squared_gradients(loss_of, 5, {"w": weight})["w"]
    torch.testing.assert_close(squared_gradients(loss_of, 6, {"w": weight})["w"], five)
    assert not torch.equal(squared_gradients(loss_of, 1, {"w": weight})["w"], five)
    assert not squared_gradients(loss_of, 0, {"w": weight})["w"].any()


def test_a_parameter_outside_the_loss_has_no_importance():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    found = squared_gradients(lambda _: used.sum(), 2, {"used": used, "unused": unused})
    assert found["used"].tolist() == [1, 1]
    assert found["unused"].tolist() == [0, 0, 0]


def test_it_is_the_running_mean_over_consolidations():
    importance = Importance({"a": (2,)})
    values = [torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0]), torch.tensor([3.0, 2.0])]
    for value in values:
        importance.update({"a": value})
    torch.testing.assert_close(importance.values["a"], torch.tensor([2.0, 2.0]))
    assert importance.consolidations == 3


def test_the_penalty_and_its_gradient():
    importance = Importance({"a": (2,), "b": (1,)})
    theta = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor([3.0], requires_grad=True)}
    assert importance.penalty(theta, 10.0).item() == 0
    importance.update({"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([0.0])})
    loss = importance.penalty(theta, 10.0)
    assert loss.item() == pytest.approx(5 * (1 * 1 + 0.5 * 4))
    loss.backward()
    assert theta["a"].grad.tolist() == [10.0, 10.0]


def test_values_that_are_not_finite_are_refused_and_change_nothing():
    importance = Importance({"a": (1,), "b": (1,)})
    before = importance.state_dict()
    with pytest.raises(ValueError, match="b is not finite"):
        importance.update({"a": torch.ones(1), "b": torch.full((1,), float("inf"))})
    assert importance.state_dict() == before


def test_state_round_trip():
    importance, twin = Importance({"a": (3,)}), Importance({"a": (3,)})
    importance.update({"a": torch.rand(3)})
    twin.load_state_dict(importance.state_dict())
    for one in (importance, twin):
        one.update({"a": torch.ones(3)})
    np.testing.assert_array_equal(importance.state_dict()["omega"]["a"], twin.state_dict()["omega"]["a"])
    with pytest.raises(ValueError, match="expected of"):
        Importance({"b": (3,)}).load_state_dict(importance.state_dict())
