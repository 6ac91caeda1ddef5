"""The block Cholesky factor: of leading parts, and the diagonal of the inverse."""

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
def test_a_leading_part_is_the_factor_of_the_leading_matrix(width, leading):
    factor, A = decomposed(width)
    right = torch.randn(leading, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part = factor.leading(leading)
    expected = torch.linalg.solve(A[:leading, :leading], right)
    assert torch.allclose(part.solve(right), expected, rtol=1e-9, atol=1e-12)
    assert part.inverse_diagonal() == pytest.approx(
        torch.linalg.inv(A[:leading, :leading]).diagonal(), rel=1e-9
    )
