"""Weights of the first features alone: those of a head that never had the others, whatever was learned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead

D, C = 10, 3


def drawn(n, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % C
    return torch.randn(n, D, generator=generator) + targets[:, None] * torch.linspace(-1, 1, D), targets


def ridge(width):
    head = RidgeHead(width, variance_ridge=5.0)
    head.grow(C)
    return head


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, D), st.lists(st.sampled_from("+-c"), max_size=4))
def test_they_equal_a_head_of_its_own_after_any_learning_and_erasure(seed, width, steps):
    whole, own = ridge(D), ridge(width)
    batches = []
    for number, step in enumerate(["+", *steps]):
        if step == "+":
            batches.append(drawn(12 + number, seed + number))
            for head in (whole, own):
                head.update(batches[-1][0][:, : head.width], batches[-1][1])
        elif step == "-" and len(batches) > 1:
            x, y = batches.pop(0)
            for head in (whole, own):
                head.downdate(x[:, : head.width], y)
        elif step == "c" and whole.classes > 1 and whole.classes == C:
            for x, y in batches:
                for head in (whole, own):
                    head.downdate(x[y == 0][:, : head.width], y[y == 0])
            for head in (whole, own):
                head.drop_class(0)
            batches = [(x[y > 0], y[y > 0] - 1) for x, y in batches]
            break
    queries = drawn(6, seed + 99)[0][:, :width]
    assert whole.leading_scores(queries) == pytest.approx(own.scores_refit(queries), rel=1e-9, abs=1e-11)


def test_they_follow_what_is_learned_between_two_calls_and_all_features_give_the_refitted_scores():
    head, (x, y) = ridge(D), drawn(30, 1)
    assert not torch.isfinite(head.leading_scores(x[:2, :4])).any()
    head.update(x, y)
    first = head.leading_scores(x[:5, :4])
    head.update(*drawn(30, 2))
    assert not torch.equal(head.leading_scores(x[:5, :4]), first)
    assert head.leading_scores(x[:5]) == pytest.approx(head.scores_refit(x[:5]), rel=1e-12)


def test_heads_that_cannot_leave_out_features_say_so():
    assert not RidgeHead(D, projection=20).has_leading
    assert not SLDAHead(D).has_leading
    assert RidgeHead(D).has_leading


def test_they_depend_on_the_sums_alone_and_not_on_what_was_asked_before():
    x, y = drawn(40, 3)
    first, second = ridge(D), ridge(D)
    for head in (first, second):
        head.update(x, y)
    first.leading_scores(x[:5, :3])
    first.leading_scores(x[:5, :9])
    first.uncertainty(x[:5])
    assert torch.equal(first.leading_scores(x[:5, :6]), second.leading_scores(x[:5, :6]))
    assert torch.equal(first.leading_scores(x[:5, :3]), second.leading_scores(x[:5, :3]))
