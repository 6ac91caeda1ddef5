"""Sums in blocks and their Cholesky factors: of leading parts, and the diagonal of the inverse."""

import pytest
import torch

from streamcl.heads.gram import Gram


def decomposed(width):
    rows = torch.randn(width + 20, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    gram = Gram(width)
    gram.add(rows)
    ridge = torch.linspace(1.0, 2.0, width, dtype=torch.float64)
    return gram.regularised(ridge), gram.full() + torch.diag(ridge)


@pytest.mark.parametrize("width", [7, 512, 700])
def test_the_diagonal_of_the_inverse(width):
    factor, A = decomposed(width)
    assert factor.inverse_diagonal() == pytest.approx(torch.linalg.inv(A).diagonal(), rel=1e-9)


@pytest.mark.parametrize(("width", "leading"), [(7, 3), (7, 7), (700, 100), (700, 512), (700, 600)])
def test_a_leading_part_of_a_sum_is_that_of_the_first_columns(width, leading):
    rows = torch.randn(width + 20, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    whole, own = Gram(width), Gram(leading)
    whole.add(rows)
    own.add(rows[:, :leading])
    part = whole.leading(leading)
    assert torch.allclose(part.full(), own.full(), rtol=1e-12)
    before = whole.full()
    ridge = torch.ones(leading, dtype=torch.float64)
    right = torch.randn(leading, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.solve(own.full() + torch.eye(leading, dtype=torch.float64), right)
    assert torch.allclose(part.regularised(ridge).solve(right), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(whole.full(), before)  # the factor is of a copy
