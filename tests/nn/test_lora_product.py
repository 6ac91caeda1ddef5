"""The hand-written gradients of the adapted projection; what is kept for speed is never stale."""

import pytest
import torch
from tiny_backbones import images, shared

from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import AdaptedProduct, LoRALinear

BF16 = torch.bfloat16


def pair(rank=2, width=6):
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(width, 3 * width), rank, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B.normal_()
    return layer


@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_finite_differences(biased):
    torch.manual_seed(0)
    x, W, A, R = (torch.randn(shape, dtype=torch.float64) for shape in [(5, 6), (9, 6), (4, 6), (9, 4)])
    b = torch.randn(9, dtype=torch.float64) if biased else None
    trained = [each.requires_grad_() for each in (x, A, R)]
    assert torch.autograd.gradcheck(lambda x, A, R: AdaptedProduct.apply(x, W, b, A, R, None)[0], trained)


def test_the_input_s_gradient_is_not_made_where_nobody_asks():
    layer, x = pair(), torch.randn(4, 6)
    assert torch.autograd.grad(layer(x).sum(), [layer.lora_A, layer.lora_B])[0].any()


def test_bf16_output_follows_the_weight_through_a_fold_and_back():
    layer, x = pair(), torch.randn(4, 6)

    def output():
        with torch.autocast("cpu", dtype=BF16), torch.no_grad():
            return layer(x)

    before = output()
    layer.merge()
    with torch.no_grad():
        layer.lora_B.zero_()
    torch.testing.assert_close(output(), before, rtol=0.05, atol=0.05)
    layer.set_adapted_rows(torch.zeros(2, 6, 6))
    flat = output().view(4, 3, 6)
    torch.testing.assert_close(flat[:, 0], layer.bias.view(3, 6)[0].to(BF16).expand(4, -1))
    layer.unmerge()
    assert not torch.equal(output().view(4, 3, 6)[:, 0], flat[:, 0])


@pytest.mark.parametrize("family", ["vit", "eva"])
def test_bf16_training_uses_plain_attention_and_agrees_with_float32(family):
    backbone = shared(family)
    adapters = Adapters(backbone, rank=2, first_block=1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in adapters.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        tokens = backbone.run(backbone.stem(backbone.prepare(images())), stop=1)[-1]

    def gradients(enabled):
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            loss = backbone.final(adapters.run(tokens)[-1]).square().mean()
        assert [block.attn.fused_attn for block in adapters.blocks] == [not enabled] * len(adapters.blocks)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*adapters.trainable().values()])])

    exact, rough = gradients(enabled=False), gradients(enabled=True)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.98
    with torch.autocast("cpu", dtype=BF16), torch.no_grad():
        adapters.run(tokens)
    assert all(block.attn.fused_attn for block in adapters.blocks)


def test_attention_maps_past_the_room_for_them_are_left_to_the_fused_kernel(monkeypatch):
    backbone = shared("vit")
    adapters = Adapters(backbone, rank=2, first_block=1, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("streamcl.nn.adapted_blocks.ATTENTION_MAP_LIMIT", 1000)
    with torch.autocast("cpu", dtype=BF16):
        adapters.run(backbone.stem(backbone.prepare(images())))
    assert all(block.attn.fused_attn for block in adapters.blocks)
