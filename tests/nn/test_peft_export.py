import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import FAMILIES, build, images, timm

from streamcl.errors import CheckpointError, ConfigError
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.peft_export import export_adapter, export_merged, load_adapter

CLASSES = ("cat", "dog", "žába")


def adapters_of(family, folds, rank=3, first_block=1):
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters(build(family), rank=rank, first_block=first_block, generator=generator)
    for time in range(folds + 1):
        with torch.no_grad():
            for parameter in adapters.trainable().values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if time < folds:
            adapters.consolidate(generator)
    return adapters


def head_of(adapters):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, adapters.backbone.width, generator=generator), torch.randn(3, generator=generator)


def outputs(adapters):
    backbone = adapters.backbone
    tokens = backbone.stem(backbone.prepare(images()))
    entering = [tokens, *backbone.run(tokens, stop=adapters.first_block)][-1]
    return backbone.final(adapters.run(entering)[-1]).detach()


def plain_model(family, adapters, classes):
    name, args = FAMILIES[family]
    model = timm.create_model(name, num_classes=classes, **args).eval()
    left = model.load_state_dict(adapters.backbone.model.state_dict(), strict=False)
    assert all(key.startswith("head") for key in left.missing_keys)
    return model


def shapes_and_ranks(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {len(value) for key, value in tensors.items() if "lora_A" in key}


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "eva", "swin"])
def test_the_real_peft_loads_it_and_gives_the_same_outputs(family, folds, tmp_path):
    from peft import PeftModel

    adapters = adapters_of(family, folds)
    weight, bias = head_of(adapters)
    export_adapter(adapters, weight, bias, CLASSES, tmp_path, f"timm/{FAMILIES[family][0]}")
    model = PeftModel.from_pretrained(plain_model(family, adapters, 3), str(tmp_path)).eval()
    if family == "eva":  # its attention reads qkv.weight itself
        model = model.merge_and_unload()
    expected = outputs(adapters) @ weight.T + bias
    with torch.no_grad():
        got = model(adapters.backbone.prepare(images()))
    assert (got - expected).abs().max() <= 1e-4
    frozen = adapters.backbone.final(adapters.backbone.run(stem(adapters))[-1]) @ weight.T + bias
    assert (expected - frozen).abs().max() > 1e-2, "the adapters must do something, or nothing is shown"


def stem(adapters):
    return adapters.backbone.stem(adapters.backbone.prepare(images()))


def test_the_layout_is_pefts(tmp_path):
    adapters = adapters_of("vit", 0)
    export_adapter(adapters, *head_of(adapters), CLASSES, tmp_path / "a" / "b", "timm/some_vit")
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "classes.json",
    ]
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == config["lora_alpha"] == 6
    assert config["target_modules"] == ["blocks.1.attn.qkv", "blocks.2.attn.qkv"]
    assert config["modules_to_save"] == ["head"]
    tensors = load_file(folder / "adapter_model.safetensors")
    A = tensors["base_model.model.blocks.1.attn.qkv.lora_A.weight"]
    B = tensors["base_model.model.blocks.1.attn.qkv.lora_B.weight"]
    assert torch.equal(A, adapters.layers[0].lora_A)
    assert torch.equal(B[:32, :3], adapters.layers[0].lora_B[0])
    assert torch.equal(B[64:, 3:], adapters.layers[0].lora_B[1])
    assert B.count_nonzero() == 2 * 32 * 3
    assert tensors["base_model.model.head.weight"].shape == (3, 32)


@pytest.mark.parametrize(("folds", "rank"), [(0, 6), (1, 12), (3, 24)])
def test_folds_are_factored_at_their_numerical_rank(folds, rank, tmp_path):
    adapters = adapters_of("vit", folds)
    export_adapter(adapters, *head_of(adapters), CLASSES, tmp_path, "vit")
    assert shapes_and_ranks(tmp_path) == {rank}


def test_layers_of_different_rank_are_evened_out_by_zeros(tmp_path):
    adapters = adapters_of("vit", 1)
    adapters.layers[0].unmerge()
    export_adapter(adapters, *head_of(adapters), CLASSES, tmp_path, "vit")
    assert shapes_and_ranks(tmp_path) == {12}
    copy = adapters_of("vit", 0)
    load_adapter(copy, tmp_path)
    assert (outputs(copy) - outputs(adapters)).abs().max() <= 1e-5


def test_adapters_that_add_nothing_can_be_exported(tmp_path):
    adapters = adapters_of("vit", 0)
    for layer in adapters.layers:
        layer.set_adapted_rows(layer.adapted_rows())
        torch.nn.init.zeros_(layer.lora_B)
    export_adapter(adapters, None, None, (), tmp_path, "vit")
    assert shapes_and_ranks(tmp_path) == {1}
    assert load_adapter(adapters, tmp_path) is None


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_an_export_comes_back(family, folds, tmp_path):
    adapters = adapters_of(family, folds)
    weight, bias = head_of(adapters)
    export_adapter(adapters, weight, bias, CLASSES, tmp_path, "vit")
    other = adapters_of(family, 2, rank=1)
    head = load_adapter(other, tmp_path)
    assert (outputs(other) - outputs(adapters)).abs().max() <= 1e-5
    assert head.classes == CLASSES
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)


def damaged(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


KEY = "base_model.model.blocks.1.attn.qkv.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(KEY.format("B")), "missing: .*lora_B"),
        (lambda tensors: tensors.pop("base_model.model.head.bias"), "missing: .*head.bias"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "unknown: .*other"),
        (lambda tensors: tensors.update({KEY.format("A"): torch.zeros(6, 31)}), "do not fit"),
        (lambda tensors: tensors[KEY.format("B")].fill_(1), "k rows"),
    ],
)
def test_a_damaged_export_is_refused_and_nothing_changes(change, message, tmp_path):
    adapters = adapters_of("vit", 0)
    export_adapter(adapters, *head_of(adapters), CLASSES, tmp_path, "vit")
    damaged(tmp_path, change)
    before = adapters.export_state()
    with pytest.raises(CheckpointError, match=message):
        load_adapter(adapters, tmp_path)
    after = adapters.export_state()
    assert all(np.array_equal(before[name][key], after[name][key]) for name in before for key in before[name])


def test_a_folder_without_an_export_is_refused(tmp_path):
    adapters = adapters_of("vit", 0)
    with pytest.raises(CheckpointError, match="not an exported adapter"):
        load_adapter(adapters, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04junk")
    with pytest.raises(CheckpointError, match="not an exported adapter"):
        load_adapter(adapters, tmp_path)


def test_a_head_of_other_features_is_refused(tmp_path):
    adapters = adapters_of("vit", 0)
    with pytest.raises(ConfigError, match=r"\[3, 64\]"):
        export_adapter(adapters, torch.zeros(3, 64), torch.zeros(3), CLASSES, tmp_path, "vit")


@pytest.mark.parametrize("family", ["vit", "eva", "swin"])
@pytest.mark.parametrize("folds", [0, 2])
def test_the_merged_model_is_a_plain_timm_model(family, folds, tmp_path):
    adapters = adapters_of(family, folds)
    export_merged(adapters, tmp_path / "merged.safetensors")
    name, args = FAMILIES[family]
    model = timm.create_model(name, num_classes=0, **args).eval()
    model.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    with torch.no_grad():
        got = model(adapters.backbone.prepare(images()))
    assert (got - outputs(adapters)).abs().max() <= 1e-5


def with_edits(adapters):
    generator = torch.Generator().manual_seed(5)
    for path in ("blocks.1.mlp.fc2", "blocks.2.mlp.fc1"):
        weight = adapters.linear(path).weight
        out, width = weight.shape
        gain = torch.randn(out, 2, generator=generator) @ torch.randn(2, width, generator=generator)
        adapters.set_weight(path, weight + 0.05 * gain)
    return adapters


def test_edited_layers_travel_with_both_exports(tmp_path):
    from peft import PeftModel

    adapters = with_edits(adapters_of("vit", folds=1))
    plain = outputs(adapters_of("vit", folds=1))
    assert (outputs(adapters) - plain).abs().max() > 1e-2
    weight, bias = head_of(adapters)
    export_adapter(adapters, weight, bias, CLASSES, tmp_path, "timm/vit")
    model = PeftModel.from_pretrained(plain_model("vit", adapters, 3), str(tmp_path))
    expected = outputs(adapters) @ weight.T + bias
    pixels = adapters.backbone.prepare(images())
    assert torch.allclose(model(pixels), expected, atol=1e-4)
    twin = adapters_of("vit", folds=0)
    load_adapter(twin, tmp_path)
    assert torch.allclose(outputs(twin), outputs(adapters), atol=1e-4)
    export_merged(adapters, tmp_path / "merged.safetensors")
    merged = plain_model("vit", adapters, 0)
    merged.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    assert torch.allclose(merged(pixels), outputs(adapters), atol=1e-4)
