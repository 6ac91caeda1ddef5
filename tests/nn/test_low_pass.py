"""Back-propagation on bases of the grid: whole on all of them, nearer with each more, forwards exact."""

from itertools import pairwise

import pytest
import torch
from pictures import TINY_VIT
from tiny_backbones import images, shared

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import AdaptedProduct
from streamcl.nn.low_pass_backprop import LowPass, cell_basis, low_pass_basis

PLAIN = ["vit", "deit", "dinov2", "eva"]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 5), (3, 7), (1, 6), (14, 14)])
def test_bases_are_orthonormal_and_at_full_order_complete(height, width):
    for order in (1, 2, 3, height + width - 1):
        basis = low_pass_basis(height, width, order)
        assert len(basis) == sum(i + j < order for i in range(height) for j in range(width))
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)
    assert len(basis) == height * width


def test_a_basis_of_a_power_of_two_is_walsh_hadamard_s_by_sequency():
    basis = low_pass_basis(1, 8, 8)
    torch.testing.assert_close(basis.abs() * 8**0.5, torch.ones(8, 8))
    assert (basis.sign().diff(dim=1) != 0).sum(1).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("height", "width", "side"), [(4, 4, 2), (7, 7, 3), (5, 3, 2), (1, 6, 4), (14, 14, 14)]
)
def test_cells_are_orthonormal_and_give_each_patch_the_mean_of_its_cell(height, width, side):
    basis = cell_basis(height, width, side)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)))
    x = torch.randn(height, width)
    means = torch.empty_like(x)
    for top in range(0, height, side):
        for left in range(0, width, side):
            means[top : top + side, left : left + side] = x[top : top + side, left : left + side].mean()
    torch.testing.assert_close(basis.T @ (basis @ x.flatten()), means.flatten())
    constant = torch.full((height * width,), 3.0)
    torch.testing.assert_close(basis.T @ (basis @ constant), constant)


def test_one_cell_is_the_first_walsh_hadamard_basis_and_cells_of_one_patch_are_all():
    torch.testing.assert_close(cell_basis(6, 5, 6), low_pass_basis(6, 5, 1))
    torch.testing.assert_close(cell_basis(6, 5, 1), torch.eye(30))


def wht(backbone, order):
    prefix, height, width = backbone.grid
    return LowPass(prefix, low_pass_basis(height, width, order))


def cells(backbone, side, **options):
    prefix, height, width = backbone.grid
    return LowPass(prefix, cell_basis(height, width, side), **options)


def gradients(family, order, *, first_block=0, basis=wht):
    """Output and gradient of every adapter, with a fixed pair in each."""
    backbone = shared(family)
    low_pass = None if order is None else basis(backbone, order)
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters(backbone, rank=2, first_block=first_block, generator=generator, low_pass=low_pass)
    with torch.no_grad():
        for parameter in adapters.trainable().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokens = backbone.run(backbone.stem(backbone.prepare(images())), stop=first_block)
    tokens = [backbone.stem(backbone.prepare(images())), *tokens][-1]
    out = backbone.final(adapters.run(tokens)[-1])
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((out - target).square().mean(), list(adapters.trainable().values()))
    return out.detach(), torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("family", PLAIN)
def test_full_order_is_plain_back_propagation(family):
    (out, whole), (same, low) = gradients(family, None), gradients(family, 7)  # 4 x 4 patches
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(low, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", PLAIN)
def test_the_gradient_comes_nearer_with_the_order_and_the_output_stays(family):
    out, whole = gradients(family, None)
    cosines = []
    for order in (1, 3, 5, 7):
        same, low = gradients(family, order)
        torch.testing.assert_close(same, out)
        cosines.append(float(torch.nn.functional.cosine_similarity(low, whole, dim=0)))
    assert cosines[0] > 0.2
    assert cosines[0] < cosines[-1]
    assert all(after > before - 0.02 for before, after in pairwise(cosines))
    assert cosines[-1] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("family", PLAIN)
def test_cells_of_one_patch_are_plain_back_propagation_and_one_cell_is_order_one(family):
    (out, whole), (same, one) = gradients(family, None), gradients(family, 1, basis=cells)
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(one, whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradients(family, 4, basis=cells), gradients(family, 1), rtol=1e-4, atol=1e-6)


def rows_through(low_pass, tokens=18, images=3):
    """Gradients for x, A and R of one adapted product, whose output has a fixed gradient."""
    draw = torch.Generator().manual_seed(0)
    x, W, A, R = (
        torch.randn(*shape, generator=draw) for shape in ((images * tokens, 6), (9, 6), (4, 6), (9, 4))
    )
    trained = [each.requires_grad_() for each in (x, A, R)]
    y, *_ = AdaptedProduct.apply(x, W, None, A, R, low_pass)
    return torch.autograd.grad(y, trained, torch.randn(y.shape, generator=draw))


def test_gradients_of_the_adapter_are_exact_unless_activations_are_pooled():
    _, A, R = rows_through(None)
    _, same, equal = rows_through(LowPass(2, cell_basis(4, 4, 2)))
    assert torch.equal(same, A)
    assert torch.equal(equal, R)
    _, pooled, exact = rows_through(LowPass(2, cell_basis(4, 4, 2), pools_activations=True))
    assert torch.equal(exact, R)
    assert not torch.allclose(pooled, A)
    _, whole, _ = rows_through(LowPass(2, cell_basis(4, 4, 1), pools_activations=True))
    torch.testing.assert_close(whole, A)


def test_pooled_activations_keep_an_input_on_its_bases_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t
    ):
        rows_through(LowPass(2, cell_basis(4, 4, 2), pools_activations=True))
    assert (3 * (2 + 4), 6) in kept
    assert (3 * 18, 6) not in kept


def test_prefix_tokens_are_passed_exactly():
    low_pass = LowPass(2, low_pass_basis(4, 4, 1))
    g, W = torch.randn(3, 18, 5), torch.randn(5, 6)
    got = low_pass.filtered_product(g, W)
    torch.testing.assert_close(got[:, :2], (g @ W)[:, :2])
    torch.testing.assert_close(got[:, 2:], (g @ W)[:, 2:].mean(1, keepdim=True).expand(-1, 16, -1))


def settings(learner, **options):
    backbone = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    return config_from_dict({"source": "x", "learner": learner, "backbone": {**backbone, **options}})


def made(learner, **options):
    config = settings(learner, **options)
    compute = build_compute(config)
    return build_learner(config, build_vit(config, compute), compute)


def test_the_configuration_reaches_the_adapters():
    learner = made({"name": "online_lora", "last_blocks": 1, "backprop": {"lbp_wht": {"order": 2}}})
    assert learner.adapters.first_block == learner.backbone.depth - 1
    assert all(layer.low_pass is not None for layer in learner.adapters.layers)


def test_the_configuration_chooses_cells_and_whether_activations_are_pooled():
    chosen = {"grad_filter": {"patch": 2, "pool_activations": True}}
    learner = made({"name": "online_lora", "backprop": chosen})
    expected = cells(learner.backbone, 2)
    for layer in learner.adapters.layers:
        assert torch.equal(layer.low_pass.basis, expected.basis)
        assert layer.low_pass.pools_activations


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="exclude each other"):
        settings({"name": "online_lora", "last_blocks": 1, "first_block": 1})
    with pytest.raises(ConfigError, match="'lbp_wht' and 'grad_filter' exclude each other"):
        settings({"name": "online_lora", "backprop": {"lbp_wht": {}, "grad_filter": {}}})
    with pytest.raises(ConfigError, match=r"learner.last_blocks: is 40, but"):
        made({"name": "online_lora", "last_blocks": 40})
