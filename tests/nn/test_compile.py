"""Compiled blocks: for whole chunks without gradients, the same to rounding, and for ever the same."""

import shutil

import pytest
import torch
from log_messages import logged
from pictures import TINY_VIT, make_batch

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.learners.block_features import FrozenReader
from streamcl.nn.build import build_backbone, compile_blocks
from streamcl.nn.device import Compute

COMPUTE = Compute(torch.device("cpu"), "bf16-mixed", rows=16)
SAMPLES = make_batch(0, ["ant", "bee", "cat"] * 9).samples


def build():
    return build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT)


@pytest.fixture(scope="module")
def compiled():
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler is here for torch.compile")
    if " " in torch.__file__:
        pytest.skip("torch lies at a path with a space, where torch.compile cannot link")
    backbone = build()
    compile_blocks(backbone, COMPUTE)
    return backbone


def features(backbone, samples, views):
    return FrozenReader(backbone, COMPUTE, [0, 2], tta_views=views)(samples)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_features_are_those_of_the_plain_blocks_to_rounding(compiled, views):
    plain, quick = (features(backbone, SAMPLES, views) for backbone in (build(), compiled))
    assert torch.allclose(quick, plain, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_a_feature_does_not_depend_on_which_images_come_with_it(compiled, views):
    together = features(compiled, SAMPLES, views)
    assert torch.equal(features(compiled, SAMPLES[5:6], views), together[5:6])
    assert torch.equal(features(compiled, SAMPLES[::-1], views), together.flip(0))


@pytest.mark.parametrize("views", [1, 2])
def test_whole_chunks_go_through_the_compiled_blocks(monkeypatch, views):
    through = []

    def counted(block, **options):
        return lambda tokens: through.append(len(tokens)) or block(tokens)

    monkeypatch.setattr(torch, "compile", counted)
    backbone = build()
    compile_blocks(backbone, COMPUTE)
    through.clear()
    features(backbone, SAMPLES, views)
    assert through == 6 * [16 * views]  # two chunks of three blocks


@pytest.mark.slow
def test_other_numbers_of_images_and_gradients_go_through_the_plain_blocks(compiled):
    plain = build()
    tokens = plain.stem(torch.randn(5, 3, 32, 32))
    with torch.no_grad():
        assert torch.equal(compiled.run(tokens)[-1], plain.run(tokens)[-1])
    tokens = plain.stem(torch.randn(16, 3, 32, 32)).requires_grad_()
    compiled.run(tokens)[-1].sum().backward()
    assert tokens.grad is not None


def test_what_cannot_be_compiled_is_a_configuration_error(monkeypatch):
    def give_up(*_, **__):
        raise RuntimeError("backend='inductor' raised:\nInductorError: no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda block, **_: give_up)
    with pytest.raises(ConfigError, match=r"backbone.compile: .* no C\+\+ compiler$"):
        compile_blocks(build(), COMPUTE)


def test_the_blocks_are_compiled_where_the_configuration_asks_for_it(monkeypatch):
    from streamcl.factory import backbone as composition

    asked = []
    monkeypatch.setattr(composition, "compile_blocks", lambda backbone, compute: asked.append(compute.rows))
    options = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    with logged() as said:
        for wish in (False, True):
            config = config_from_dict({"source": "demo_digits", "backbone": {**options, "compile": wish}})
            composition.build_vit(config, COMPUTE)
    assert asked == [16]
    assert said == ["compiling the blocks of vit_tiny_patch16_224"]
