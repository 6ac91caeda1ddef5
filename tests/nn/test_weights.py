import pickle
import sys

import pytest
import torch
from log_messages import logged
from safetensors.torch import load_file, save_file
from tiny_backbones import FAMILIES, PLAIN, build, images, timm

from streamcl.errors import MissingExtra, WeightsError
from streamcl.nn.build import build_backbone
from streamcl.nn.weights.load import convert_onnx, read_weights

VIT, DINOV2 = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"


def built(path, name=VIT, **options):
    return build_backbone(name, weights=str(path), **{"args": PLAIN, **options})


def saved(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def vit():
    return build("vit")


@pytest.fixture
def state(vit):
    return {key: value.clone() for key, value in vit.model.state_dict().items()}


def same(first, second):
    one, other = first.model.state_dict(), second.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("form", ["{}", "file:{}"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt"])
def test_a_file_of_weights_fills_the_model(vit, state, tmp_path, name, form):
    assert same(built(form.format(saved(state, tmp_path / name))), vit)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_its_own_weights(family, tmp_path):
    backbone = build(family)
    path = saved(backbone.model.state_dict(), tmp_path / "w.safetensors")
    name, args = FAMILIES[family]
    assert same(built(path, name, args=args), backbone)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"teacher": {f"backbone.{key}": value for key, value in state.items()}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.backbone.{key}": value for key, value in state.items()},
    ],
)
def test_what_trainers_wrap_around_weights_is_taken_off(vit, state, tmp_path, wrap):
    assert same(built(saved(wrap(state), tmp_path / "w.pth")), vit)


def test_classifiers_and_further_blocks_are_dropped_and_said(vit, state, tmp_path):
    state |= {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    with logged() as said:
        backbone = built(saved(state, tmp_path / "w.safetensors"), depth=2)
    assert backbone.depth == 2
    assert len(said) == 1
    assert said[0].endswith("14 weights are not used: blocks.2 (12), head (2)")
    with logged() as said:
        built(saved(vit.model.state_dict(), tmp_path / "v.safetensors"))
    assert said == [], "nothing is said where nothing is dropped"


def test_a_file_that_holds_only_the_kept_blocks_is_enough(state, tmp_path):
    first = {key: value for key, value in state.items() if "blocks.2" not in key}
    assert built(saved(first, tmp_path / "w.safetensors"), depth=2).depth == 2


def test_missing_weights_are_an_error(state, tmp_path):
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 of \d+ weights are missing: blocks\.1\.attn\.qkv\.weight"):
        built(saved(state, tmp_path / "w.safetensors"))


def test_another_shape_is_an_error(state, tmp_path):
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.bias is \[7\], not \[128\]"):
        built(saved(state, tmp_path / "w.safetensors"))


def test_another_patch_size_is_an_error(state, tmp_path):
    with pytest.raises(WeightsError, match=r"\[32, 3, 8, 8\], not \[32, 3, 4, 4\]"):
        built(saved(state, tmp_path / "w.safetensors"), args={**PLAIN, "patch_size": 4})


def test_a_position_grid_is_resampled_as_timm_does(state, tmp_path):
    from timm.layers import resample_abs_pos_embed

    backbone = built(saved(state, tmp_path / "w.safetensors"), image_size=64)
    expected = resample_abs_pos_embed(state["pos_embed"], [8, 8], num_prefix_tokens=1)
    assert torch.equal(backbone.model.pos_embed, expected)


class _Runs:
    def __reduce__(self):
        return pytest.fail, ("code in the file was run",)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"model": _Runs()}, protocol=2)])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.onnx"])
def test_damaged_and_malicious_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError):
        built(tmp_path / name)


def test_absent_and_odd_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        built(tmp_path / "absent.pth")
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(WeightsError, match=r"'\.txt'"):
        built(tmp_path / "w.txt")
    with pytest.raises(WeightsError, match="missing"):
        built(saved({}, tmp_path / "w.pth"))


def test_a_local_folder_of_timms(tmp_path, vit):
    from timm.models import save_for_hf

    model = timm.create_model(VIT, num_classes=0, **PLAIN)
    model.load_state_dict(vit.model.state_dict())
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert same(built(f"local-dir:{tmp_path}"), vit)
    with pytest.raises(WeightsError, match=f"holds a {VIT}, not a vit_small_patch16_224"):
        built(f"local-dir:{tmp_path}", "vit_small_patch16_224")


def hugging_face(kind):
    import transformers

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    if kind == "vit":
        config = transformers.ViTConfig(**sizes, intermediate_size=128, layer_norm_eps=1e-6)
        model = transformers.ViTModel(config, add_pooling_layer=False)
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    else:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
        model = transformers.Dinov2WithRegistersModel(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def on_disk(model, folder):
    """The names that files have: transformers renames them when it loads and when it saves."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


HUGGING_FACE = {"vit": VIT, "dinov2": "vit_small_patch14_dinov2", "registers": DINOV2}


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_weights_under_hugging_faces_names_give_its_outputs(kind, tmp_path):
    model = hugging_face(kind)
    path = saved(
        {f"backbone.{key}": value for key, value in on_disk(model, tmp_path).items()}, tmp_path / "w.pth"
    )
    backbone = built(path, HUGGING_FACE[kind], args={**PLAIN, "init_values": None if kind == "vit" else 1.0})
    pixels = backbone.prepare(images())
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        got = backbone.model.norm(backbone.run(backbone.stem(pixels))[-1])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class Exporter:
    """Writes a ViT's weights as torch's exporter does: matrices transposed, without names, known by use."""

    def __init__(self):
        self.nodes, self.initialisers = [], []

    def keep(self, name, value):
        from onnx import numpy_helper

        self.initialisers.append(numpy_helper.from_array(value.contiguous().numpy(), name))

    def linear(self, name, weight, bias):
        from onnx import helper

        matrix = f"onnx::MatMul_{len(self.nodes)}"
        self.keep(matrix, weight.T)
        self.keep(f"{name}.bias", bias)
        self.nodes.append(helper.make_node("MatMul", ["x", matrix], [f"{name}/product"]))
        self.nodes.append(helper.make_node("Add", [f"{name}.bias", f"{name}/product"], [f"{name}/sum"]))

    def save(self, path):
        import onnx
        from onnx import helper

        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "vit", [x], [x], self.initialisers)
        onnx.save(helper.make_model(graph), path)
        return path


def exported(state, path):
    exporter = Exporter()
    for key, value in state.items():
        if key.endswith(".weight") and value.ndim == 2:
            exporter.linear(key.removesuffix(".weight"), value, state[key.replace(".weight", ".bias")])
        elif key.endswith("position_embeddings"):
            exporter.keep("onnx::Concat_1", value[:, :1])
            exporter.keep("onnx::Reshape_2", value[:, 1:])
        elif (
            key.removesuffix(".bias") + ".weight" not in state
            or state[key.removesuffix(".bias") + ".weight"].ndim != 2
        ):
            exporter.keep(key, value)
    return exporter.save(path)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_an_onnx_export_gives_its_weights_back(kind, tmp_path):
    state = {f"backbone.{key}": value for key, value in on_disk(hugging_face(kind), tmp_path).items()}
    plain = saved(state, tmp_path / "plain.pth")
    path = exported(state, tmp_path / "export.onnx")
    convert_onnx(path, tmp_path / "converted.safetensors")
    args = {**PLAIN, "init_values": None if kind == "vit" else 1.0}
    expected = built(plain, HUGGING_FACE[kind], args=args)
    assert same(built(path, HUGGING_FACE[kind], args=args), expected)
    assert same(built(tmp_path / "converted.safetensors", HUGGING_FACE[kind], args=args), expected)


def test_an_onnx_export_under_timms_names(vit, state, tmp_path):
    assert same(built(exported(state, tmp_path / "vit.onnx")), vit)


def test_onnx_without_its_package_says_which_extra_brings_it(vit, state, tmp_path, monkeypatch):
    path = exported(state, tmp_path / "vit.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match="onnx package") as caught:
        read_weights(path)
    assert "streamcl[onnx]" in caught.value.hint


def test_a_conversion_is_named_as_timm_names(tmp_path):
    state = on_disk(hugging_face("vit"), tmp_path)
    convert_onnx(exported(state, tmp_path / "a.onnx"), tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors").keys() == build("vit").model.state_dict().keys()
