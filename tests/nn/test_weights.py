import pickle
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from log_messages import logged
from safetensors.torch import load_file, save_file
from tiny_backbones import FAMILIES, PLAIN, build, images, timm
from torch.overrides import TorchFunctionMode

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


class CountedDraws(TorchFunctionMode):
    """Counts the random values that are drawn for whole tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "").endswith(("uniform_", "normal_"))  # torch.nn.init's too
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_random_values_are_drawn_where_a_file_brings_all(family, tmp_path):
    name, args = FAMILIES[family]
    with CountedDraws() as random:
        backbone = build_backbone(name, weights="none", args=args)
    path = saved(backbone.model.state_dict(), tmp_path / "w.safetensors")
    before = torch.random.get_rng_state()
    with CountedDraws() as of_a_file:
        loaded = built(path, name, args=args)
    assert random.count > 0
    assert of_a_file.count == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.fingerprint == backbone.fingerprint
    buffers = dict(backbone.named_buffers())  # those that are in no file as well
    assert all(torch.equal(value, buffers[key]) for key, value in loaded.named_buffers())


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"teacher": {f"backbone.{key}": value for key, value in state.items()}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: prefixed("module.backbone.", state),
        lambda state: {"state_dict": prefixed("model.module.", state)},
        lambda state: {"state_dict": prefixed("model._orig_mod.", state) | {"criterion.w": torch.ones(2)}},
        lambda state: prefixed("module._fsdp_wrapped_module.", state),
        lambda state: {"state_dict_ema": state, "epoch": torch.tensor(3)},
        lambda state: {"state_dict": state, "state_dict_ema": zeros(state)},
        lambda state: {
            "model_state_dict": state,
            "optimizer_state_dict": {"state": {0: {"m": torch.ones(2)}}},
        },
        lambda state: {"student": zeros(state), "teacher": state},
        lambda state: {"weights of ours": {"deeper": state}, "args": Namespace(lr=1)},
        lambda state: {"model": state, "args": Namespace(lr=1), "best": np.float64(0.5), "path": Path("a")},
        lambda state: {"model": state, "callbacks": {Namespace: [Namespace(a=torch.ones(2))]}},
        lambda state: prefixed("backbone.", state) | prefixed("teacher.backbone.", zeros(state)),
    ],
)
def test_what_trainers_wrap_around_weights_is_taken_off(vit, state, tmp_path, wrap):
    assert same(built(saved(wrap(state), tmp_path / "w.pth")), vit)


def test_the_choice_among_several_models_is_said(state, tmp_path):
    with logged() as said:
        built(saved({"state_dict": state, "state_dict_ema": zeros(state)}, tmp_path / "w.pth"))
    assert said[0].endswith("of several models state_dict is used, not state_dict_ema")
    with logged() as said:
        built(saved(prefixed("a.", state) | prefixed("b.c.", zeros(state)), tmp_path / "w.pth"))
    assert said[0].endswith("of several models 'a.' is used, not 'b.c.'")


def test_a_checkpoint_without_weights_says_what_it_holds(state, tmp_path):
    with pytest.raises(WeightsError, match="no weights found under epoch, optimizer") as caught:
        built(saved({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth"))
    assert "state_dict" in caught.value.hint
    with pytest.raises(WeightsError, match="holds a list"):
        built(saved([1], tmp_path / "w.pth"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(state, tmp_path, number):
    state["blocks.1.mlp.fc1.weight"][3, 4] = number
    with pytest.raises(WeightsError, match=r"1 of \d+ weights are not finite numbers: blocks\.1\.mlp\.fc1"):
        built(saved(state, tmp_path / "w.safetensors"))


def test_only_weights_that_would_matter_are_named_as_unused(vit, state, tmp_path):
    state |= {"head.weight": torch.zeros(10, 32), "decoder_blocks.0.norm1.weight": torch.zeros(32)}
    with logged() as said:
        backbone = built(saved(state, tmp_path / "w.safetensors"), depth=2)
    assert backbone.depth == 2
    assert said == [], "nothing is said of a classifier, a decoder and blocks past the depth"
    state["blocks.1.ls1.gamma"] = torch.ones(32)
    with logged() as said:
        built(saved(state, tmp_path / "v.safetensors"))
    assert said[0].endswith("1 weights are not used: blocks.1.ls1.gamma")


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
        built(saved({}, tmp_path / "w.safetensors"))


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


@pytest.mark.long
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


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "link"])
def test_onnx_data_outside_of_the_files_own_folder_are_not_read(tmp_path, place):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    path = tmp_path / "model" / "a.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(WeightsError, match=r"external|inside|symbolic link"):
        read_weights(path)
