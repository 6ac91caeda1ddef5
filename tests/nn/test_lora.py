import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_backbones import FAMILIES, build, images, shared

from streamcl.errors import CheckpointError, ConfigError
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.lora import LoRALinear


def adapters_of(backbone, rank=4, first_block=1, seed=0):
    return Adapters(
        backbone, rank=rank, first_block=first_block, generator=torch.Generator().manual_seed(seed)
    )


def entering(backbone, adapters):
    tokens = backbone.stem(backbone.prepare(images()))
    return [tokens, *backbone.run(tokens, stop=adapters.first_block)][-1]


def trained(adapters, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.trainable().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapters


def frozen_weights(adapters):
    names = adapters.trainable()
    ours = {id(parameter) for parameter in names.values()}
    return [parameter for parameter in adapters.parameters() if id(parameter) not in ours]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first_block", [0, 1, 2])
def test_fresh_adapters_add_nothing_yet_have_a_gradient(family, first_block):
    backbone = shared(family)
    adapters = adapters_of(backbone, first_block=first_block)
    tokens = entering(backbone, adapters)
    outputs = adapters.run(tokens)
    expected = backbone.run(tokens, start=first_block)
    assert len(outputs) == len(expected) == 3 - first_block
    assert all(map(torch.equal, outputs, expected))
    backbone.final(outputs[-1]).square().sum().backward()
    gradients = {name: p.grad.abs().max() for name, p in adapters.trainable().items()}
    assert all((value > 0) == name.endswith("lora_B") for name, value in gradients.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_consolidation_keeps_the_outputs_the_first_the_second_and_the_fifth_time(family):
    backbone = shared(family)
    adapters = adapters_of(backbone)
    tokens = entering(backbone, adapters)
    frozen = backbone.run(tokens, start=1)[-1]
    for time in range(5):
        before = trained(adapters, seed=time).run(tokens)[-1]
        assert (before - frozen).abs().max() > 1e-3, "the adapters must do something, or nothing is shown"
        adapters.consolidate(torch.Generator().manual_seed(time))
        after = adapters.run(tokens)[-1]
        assert (after - before).abs().max() <= 1e-5 * max(1.0, before.abs().max().item())
    assert torch.equal(backbone.run(tokens, start=1)[-1], frozen), "the backbone itself never changes"


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_adapters_at_rest_give_the_same_features_and_awake_with_a_state(precision):
    backbone = shared("vit")
    adapters = trained(adapters_of(backbone))
    adapting = adapters.export_state()
    adapters.consolidate(torch.Generator().manual_seed(1))
    tokens = entering(backbone, adapters)

    def features():
        with torch.no_grad(), torch.autocast("cpu", precision or torch.bfloat16, enabled=bool(precision)):
            return adapters.run(tokens)[-1]

    expected = features()
    adapters.bypass_lora()
    torch.testing.assert_close(features(), expected)
    trained(adapters, seed=1)
    torch.testing.assert_close(features(), expected)  # the live pairs are left out
    adapters.import_state(adapting)
    trained(adapters, seed=1)
    assert not torch.allclose(features(), expected, rtol=0.1)


def test_after_consolidation_a_fresh_optimizer_learns_on():
    backbone = shared("vit")
    adapters = trained(adapters_of(backbone))
    adapters.consolidate(torch.Generator().manual_seed(1))
    tokens = entering(backbone, adapters)
    optimizer = torch.optim.Adam(adapters.trainable().values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = backbone.final(adapters.run(tokens)[-1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(layer.lora_B.grad.abs().max() > 0 for layer in adapters.layers)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_frozen_weights_stay_bit_equal_between_consolidations_and_k_rows_for_ever():
    adapters = trained(adapters_of(build("vit")))
    adapters.consolidate(torch.Generator().manual_seed(1))
    before = [weight.clone() for weight in frozen_weights(adapters)]
    tokens = entering(adapters.backbone, adapters)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.1)
    adapters.run(tokens)[-1].square().sum().backward()
    optimizer.step()
    assert all(map(torch.equal, before, frozen_weights(adapters)))
    adapters.consolidate(torch.Generator().manual_seed(2))
    for layer, block in zip(adapters.layers, adapters.backbone.blocks[1:], strict=True):
        own, original = layer.weight.view(3, 32, 32), block.attn.qkv.weight.view(3, 32, 32)
        assert torch.equal(own[1], original[1])
        assert not torch.equal(own[0], original[0])
        assert not torch.equal(own[2], original[2])


def test_frozen_tensors_are_shared_until_a_fold_and_memory_never_grows_after():
    backbone = shared("dinov2")
    adapters = adapters_of(backbone, first_block=0)
    ours = {id(parameter) for parameter in backbone.parameters()}
    assert all(id(weight) in ours for weight in frozen_weights(adapters))
    sizes = []
    for time in range(4):
        adapters.consolidate(torch.Generator().manual_seed(time))
        sizes.append(sum(parameter.numel() for parameter in adapters.parameters()))
    assert len(set(sizes)) == 1
    copied = [weight for weight in frozen_weights(adapters) if id(weight) not in ours]
    assert [list(weight.shape) for weight in copied] == [[96, 32]] * 3


def test_the_update_is_of_the_q_and_v_rows_alone():
    frozen = torch.nn.Linear(6, 12)
    layer = LoRALinear(frozen, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(5, 7, 6)
    A_q, A_v = layer.lora_A[:2], layer.lora_A[2:]
    q, k, v = frozen(x).split(4, -1)
    expected_q, expected_v = q + x @ A_q.T @ layer.lora_B[0].T, v + x @ A_v.T @ layer.lora_B[1].T
    got_q, got_k, got_v = layer(x).split(4, -1)
    assert torch.equal(got_k, k)
    torch.testing.assert_close(got_q, expected_q)
    torch.testing.assert_close(got_v, expected_v)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 12), rank=st.integers(1, 6), folds=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_number_of_folds_is_exact(width, rank, folds, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = LoRALinear(torch.nn.Linear(width, 3 * width), min(rank, width), generator)
    x = torch.randn(4, width, generator=generator)
    for _ in range(folds):
        with torch.no_grad():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator))
        before = layer(x)
        layer.merge()
        layer.reset_lora(generator)
        torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)


def test_the_pair_is_drawn_from_the_generator_as_kaiming_uniform():
    first, second = (adapters_of(shared("vit"), seed=seed).layers[0].lora_A for seed in (3, 3))
    assert torch.equal(first, second)
    expected = torch.nn.init.kaiming_uniform_(torch.empty(4000, 32), a=5**0.5)
    layer = LoRALinear(torch.nn.Linear(4000, 3), 16, torch.Generator().manual_seed(0))
    assert layer.lora_A.abs().max().item() == pytest.approx(4000**-0.5, rel=1e-3)
    assert first.abs().max() <= expected.abs().max() * 1.01


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("folds", [0, 2])
def test_a_state_restores_the_adapters_bit_for_bit(family, folds):
    backbone = shared(family)
    adapters = adapters_of(backbone)
    for time in range(folds):
        trained(adapters, seed=time).consolidate(torch.Generator().manual_seed(time))
    trained(adapters, seed=9)
    state = adapters.export_state()
    leaves = [leaf for layer in state.values() for leaf in layer.values()]
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    assert {len(layer) for layer in state.values()} == {3 if folds else 2}
    tokens = entering(backbone, adapters)
    expected = adapters.run(tokens)[-1]
    other = trained(adapters_of(backbone, seed=5), seed=6)
    other.consolidate(torch.Generator().manual_seed(7))  # folded before, whatever the state is
    trained(adapters, seed=10)  # the state is a copy
    other.import_state(state)
    assert torch.equal(other.run(tokens)[-1], expected)
    again = other.export_state()
    assert all(np.array_equal(again[name][key], state[name][key]) for name in state for key in state[name])


def test_foreign_states_are_refused():
    adapters = adapters_of(shared("vit"))
    state = adapters.export_state()
    with pytest.raises(CheckpointError, match=r"blocks\.2"):
        adapters.import_state({key: value for key, value in state.items() if "blocks.1" in key})
    with pytest.raises(CheckpointError, match="lora_A"):
        adapters.import_state({key: {**value, "lora_A": value["lora_A"][:1]} for key, value in state.items()})
    with pytest.raises(CheckpointError, match="lora_B"):
        adapters.import_state({key: {"lora_A": value["lora_A"]} for key, value in state.items()})


@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(ConfigError, match="rank"):
        adapters_of(shared("vit"), rank=rank)


@pytest.mark.parametrize("first_block", [-1, 3])
def test_a_first_block_that_is_not_there_is_refused(first_block):
    with pytest.raises(ConfigError, match="first_block"):
        adapters_of(shared("vit"), first_block=first_block)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_trains_float32_adapters(family):
    backbone = shared(family)
    adapters = adapters_of(backbone)
    tokens = entering(backbone, adapters)
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone.final(adapters.run(tokens)[-1]).square().sum()
    loss.backward()
    for layer in adapters.layers:
        assert layer.lora_B.grad.dtype == torch.float32
        assert layer.lora_B.grad.abs().max() > 0


def test_names_are_timms_paths_and_training_mode_is_refused():
    adapters = adapters_of(shared("swin")).train()
    assert list(adapters.trainable())[:2] == [
        "layers.1.blocks.0.attn.qkv.lora_A",
        "layers.1.blocks.0.attn.qkv.lora_B",
    ]
    assert not any(module.training for module in adapters.modules())


def test_per_sample_gradients_by_torch_func_sum_to_the_batchs():
    backbone = shared("vit")
    adapters = trained(adapters_of(backbone))
    tokens = entering(backbone, adapters).detach()
    pair = adapters.layers[-1]
    parameters = {"lora_A": pair.lora_A.detach(), "lora_B": pair.lora_B.detach()}

    def loss(parameters, x):
        return torch.func.functional_call(pair, parameters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, tokens)
    whole = torch.func.grad(loss)(parameters, tokens)
    for key, value in whole.items():
        assert each[key].shape == (3, *value.shape)
        torch.testing.assert_close(each[key].sum(0), value, atol=1e-4, rtol=1e-4)


def edited(adapters, path="blocks.2.mlp.fc1", seed=3):
    weight = adapters.linear(path).weight
    generator = torch.Generator().manual_seed(seed)
    adapters.set_weight(path, weight + 0.1 * torch.randn(weight.shape, generator=generator))
    return adapters


def test_an_edited_layer_is_the_learners_own_and_the_backbone_stays():
    backbone = shared("vit")
    before = backbone.blocks[2].mlp.fc1.weight.clone()
    adapters = adapters_of(backbone)
    tokens = entering(backbone, adapters)
    plain = adapters.run(tokens)[-1]
    changed = edited(adapters).run(tokens)[-1]
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(backbone.blocks[2].mlp.fc1.weight, before)
    assert torch.equal(adapters_of(backbone).run(tokens)[-1], plain)
    edited(adapters, seed=4).restore_weights()
    assert torch.equal(adapters.run(tokens)[-1], plain)
    assert adapters.replaced_weights == {}


def test_edits_are_in_the_exported_state_bit_by_bit():
    adapters = edited(trained(adapters_of(shared("vit"))))
    tokens = entering(adapters.backbone, adapters)
    twin = edited(adapters_of(shared("vit"), seed=9), "blocks.1.mlp.fc2")
    twin.import_state(adapters.export_state())
    assert torch.equal(twin.run(tokens)[-1], adapters.run(tokens)[-1])
    assert list(twin.replaced_weights) == ["blocks.2.mlp.fc1"]


@pytest.mark.parametrize(
    ("path", "shape"),
    [("blocks.0.mlp.fc1", (128, 32)), ("blocks.2.norm1", (32,)), ("blocks.2.mlp.fc1", (3, 3))],
)
def test_an_edit_of_another_place_or_shape_is_refused(path, shape):
    adapters = adapters_of(shared("vit"))
    state = adapters.export_state() | {path: {"weight": np.zeros(shape, np.float32)}}
    with pytest.raises(CheckpointError, match=path):
        adapters.import_state(state)
    assert adapters.replaced_weights == {}
