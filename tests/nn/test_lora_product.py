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


def adapted(family):
    backbone = shared(family)
    adapters = Adapters(backbone, rank=2, first_block=1, generator=torch.Generator().manual_seed(0))
    return adapters, backbone.run(backbone.stem(backbone.prepare(images())), stop=1)[-1].detach()


def bytes_of_maps(adapters, tokens):
    return 12 * len(tokens) * adapters.blocks[0].attn.num_heads * tokens[0, ..., 0].numel() ** 2


def gradients_in_bf16(adapters, tokens, between=lambda: None):
    """Return all gradients, and the bytes of the tensors of [..., N, N] that were kept for them."""
    kept = {}

    def pack(tensor):
        if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] == tokens.shape[1]:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autocast("cpu", dtype=BF16):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = adapters.backbone.final(adapters.run(tokens)[-1]).square().mean()
        between()
    return torch.autograd.grad(loss, [*adapters.trainable().values()]), sum(kept.values())


@pytest.mark.parametrize("family", ["vit", "eva", "swin"])
def test_maps_past_the_room_for_all_are_computed_anew_for_each_block_with_equal_gradients(
    family, monkeypatch
):
    adapters, tokens = adapted(family)
    assert len(adapters.blocks) > 1
    whole, bytes_kept = gradients_in_bf16(adapters, tokens)
    monkeypatch.setattr("streamcl.nn.adapted_blocks.ATTENTION_MAP_LIMIT", bytes_of_maps(adapters, tokens))
    anew, bytes_left = gradients_in_bf16(adapters, tokens)
    assert all(map(torch.equal, whole, anew))
    if family != "swin":  # whose maps are those of windows
        assert bytes_kept > 0 == bytes_left


def test_a_pass_without_gradients_in_between_changes_nothing(monkeypatch):
    adapters, tokens = adapted("vit")
    monkeypatch.setattr("streamcl.nn.adapted_blocks.ATTENTION_MAP_LIMIT", bytes_of_maps(adapters, tokens))

    def predict():
        with torch.no_grad():
            adapters.run(tokens)

    alone, _ = gradients_in_bf16(adapters, tokens)
    assert all(map(torch.equal, alone, gradients_in_bf16(adapters, tokens, predict)[0]))


def test_maps_of_one_block_past_the_room_are_left_to_the_fused_kernel(monkeypatch):
    adapters, tokens = adapted("vit")
    monkeypatch.setattr("streamcl.nn.adapted_blocks.ATTENTION_MAP_LIMIT", bytes_of_maps(adapters, tokens) - 1)
    with torch.autocast("cpu", dtype=BF16):
        adapters.run(tokens)
    assert all(block.attn.fused_attn for block in adapters.blocks)
    assert not any("forward" in vars(block.attn) for block in adapters.blocks)
