import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import FAMILIES, PLAIN, STAGED, build, images, shared

from streamcl.errors import ConfigError, WeightsError
from streamcl.nn.build import build_backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_stem_run_and_final_are_the_models_own_forward(family):
    backbone = shared(family)
    pixels = backbone.prepare(images())
    with torch.no_grad():
        expected = backbone.model.forward_head(backbone.model.forward_features(pixels), pre_logits=True)
        outputs = backbone.run(backbone.stem(pixels))
    assert len(outputs) == backbone.depth == len(backbone.blocks) == 3
    assert torch.equal(backbone.final(outputs[-1]), expected)
    assert expected.shape == (3, backbone.width)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", [0, 2, 3])
def test_finishing_gives_what_the_head_sees_after_all_blocks(family, start):
    backbone = shared(family)
    tokens = backbone.stem(backbone.prepare(images()))
    entering = [tokens, *backbone.run(tokens, 0, start)][-1]
    expected = backbone.final(backbone.run(tokens)[-1])
    torch.testing.assert_close(backbone.forward_head(entering, start), expected)
    torch.testing.assert_close(backbone.forward_head(entering, start, backbone.blocks[start:]), expected)


@pytest.mark.parametrize(("family", "read"), [("vit", 1), ("deit", 2), ("dinov2", 5), ("siglip", 20)])
def test_the_last_mlp_works_on_the_tokens_that_the_head_reads(family, read):
    backbone = shared(family)
    seen = []
    hook = backbone.blocks[-1].mlp.register_forward_hook(lambda *a: seen.append(a[2].shape[1]))
    tokens = backbone.stem(backbone.prepare(images()))
    backbone.forward_head(tokens)
    hook.remove()
    assert seen == [min(read, tokens.shape[1])]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_cut_in_two_is_the_whole_run(family):
    backbone = shared(family)
    tokens = backbone.stem(backbone.prepare(images()))
    whole = backbone.run(tokens)
    for cut in range(1, backbone.depth):
        first = backbone.run(tokens, stop=cut)
        second = backbone.run(first[-1], start=cut)
        assert all(map(torch.equal, first + second, whole))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast_stays_near_float32(family):
    backbone = shared(family)
    pixels = backbone.prepare(images())
    expected = backbone.final(backbone.run(backbone.stem(pixels))[-1])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = backbone.run(backbone.stem(pixels))[-1]
        final, pooled = backbone.final(tokens), backbone.pooled(tokens)
    assert final.dtype == pooled.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(final, expected).min() > 0.99


@pytest.mark.parametrize(
    ("family", "prefix", "has_class"),
    [("vit", 1, True), ("deit", 2, True), ("dinov2", 5, True), ("dinov3", 5, True), ("siglip", 0, False)],
)
def test_pooled_is_class_token_and_mean_patch_without_registers(family, prefix, has_class):
    backbone = shared(family)
    tokens = backbone.run(backbone.stem(backbone.prepare(images())))[0]
    assert tokens.shape[1] == prefix + 16
    parts = [tokens[:, 0]] * has_class + [tokens[:, prefix:].mean(1)]
    expected = torch.cat([torch.nn.functional.layer_norm(part, [32]) for part in parts], 1)
    torch.testing.assert_close(backbone.pooled(tokens), expected)


def test_pooled_of_swin_grows_with_its_stages():
    backbone = shared("swin")
    outputs = backbone.run(backbone.stem(backbone.prepare(images())))
    assert [tuple(backbone.pooled(tokens).shape) for tokens in outputs] == [(3, 16), (3, 32), (3, 32)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_is_frozen_and_stays_in_evaluation_mode(family):
    backbone = shared(family).train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_prepare_is_resized_like_pillow_and_normalised_with_the_models_own_mean():
    backbone = shared("deit")
    image = np.asarray(Image.radial_gradient("L").convert("RGB").resize((100, 60)))
    pixels = backbone.prepare([image])[0].permute(1, 2, 0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs((pixels * std + mean).numpy() * 255 - expected).max() <= 1.01


def test_prepare_of_the_right_size_only_normalises():
    image = images(1)[0]
    pixels = shared("vit").prepare([image])[0].permute(1, 2, 0)
    torch.testing.assert_close(pixels, torch.from_numpy(image).float() / 127.5 - 1, atol=1e-6, rtol=0)


def test_prepare_does_not_depend_on_the_company_of_an_image():
    backbone = shared("vit")
    mixed = [*images(2, 20), *images(2, 32, 1), *images(1, 20, 2), *images(1, 50, 3)]
    together = backbone.prepare(mixed)
    assert torch.equal(together, torch.cat([backbone.prepare([image]) for image in mixed]))
    assert backbone.prepare([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3", "swin"])
@pytest.mark.parametrize("size", [16, 48, 64])
def test_any_image_size_runs(family, size):
    backbone = build(family, image_size=size)
    assert backbone.image_size == size
    tokens = backbone.run(backbone.stem(backbone.prepare(images(2))))[-1]
    assert backbone.final(tokens).isfinite().all()


def test_depth_keeps_the_first_blocks_and_the_final_norm():
    cut = build_backbone("vit_tiny_patch16_224", weights="none", args=PLAIN, depth=2)
    whole = build_backbone("vit_tiny_patch16_224", weights="none", args=PLAIN)
    pixels = cut.prepare(images())
    assert cut.depth == 2
    assert torch.equal(cut.run(cut.stem(pixels))[1], whole.run(whole.stem(pixels))[1])
    assert cut.final(cut.run(cut.stem(pixels))[-1]).shape == (3, 32)
    assert build("swin", depth=2).depth == 2


@pytest.mark.parametrize(("family", "depth"), [("vit", 0), ("vit", 4), ("swin", 1), ("swin", -1)])
def test_a_depth_that_cannot_be_is_refused(family, depth):
    with pytest.raises(ConfigError, match="depth is"):
        build(family, depth=depth)


def test_random_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    name, args = FAMILIES["vit"]
    prints = [build_backbone(name, weights="none", seed=seed, args=args).fingerprint for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert prints[0] == prints[1] != prints[2]
    assert build_backbone(name, weights="none", args=args, image_size=64).fingerprint != prints[0]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet18", {}, "is a ResNet"),
        ("beitv2_base_patch16_224", PLAIN, "is a Beit"),
        ("vit_tiny_patch16_224", {**PLAIN, "img_size": 30}, "patches of 8"),
        ("vit_tiny_patch16_224", {"no_such_argument": 1}, "does not take"),
        ("vit_tiny_patch16_224", {**PLAIN, "num_heads": 5}, "cannot be built"),
        ("vit_tiny_patch16_224", {**PLAIN, "patch_size": True}, "process an image with these arguments"),
        ("eva02_base_patch14_224", {**PLAIN, "qkv_fused": False}, "blocks.0 has no fused qkv"),
        ("swin_tiny_patch4_window7_224", {**STAGED, "img_size": (32, 64)}, "not a square"),
    ],
)
def test_models_that_cannot_serve_are_refused(name, args, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, weights="none", args=args)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match="vit_tiny_patch16_225") as caught:
        build_backbone("vit_tiny_patch16_225", weights="none")
    assert "vit_tiny_patch16_224" in caught.value.hint


def test_a_hub_without_a_network_is_refused_with_a_hint(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="the weights of vit_tiny_patch16_224 cannot be had") as caught:
        build_backbone("vit_tiny_patch16_224")
    assert "file:PATH" in str(caught.value)
