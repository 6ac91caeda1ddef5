import contextlib
import io
import threading
from collections import namedtuple
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.events import RejectedRecord, Sample
from streams.user.records import RecordPolicy, to_sample, to_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def sample(record, **options):
    return to_sample(record, default_id="d-0", **options)


def samples(record, **options):
    return list(to_samples(record, **({"offset": 10, "name": "s"} | options)))


def png():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def test_every_way_to_give_an_image(tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes(png())
    ways = [
        PIXELS,
        PIXELS / 255,
        PIXELS.transpose(2, 0, 1),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float().div(255).requires_grad_(),
        Image.fromarray(PIXELS),
        str(path),
        path,
        png(),
        bytearray(png()),
        memoryview(png()),
        {"bytes": png(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    for x in ways:
        assert np.array_equal(sample((x, 1)).image, PIXELS), type(x)


def test_half_precision_tensors():
    x = torch.full((3, 4, 4), 0.5)
    for dtype in (torch.float16, torch.bfloat16):
        assert (sample((x.to(dtype), 0)).image == 128).all()


def test_tensors_have_their_channels_first_where_both_axes_could_be():
    x = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    assert np.array_equal(sample((x, 0)).image, x.permute(1, 2, 0).numpy())
    assert np.array_equal(sample((x.numpy(), 0)).image, x.numpy())


def test_every_form_of_a_record():
    pair = namedtuple("pair", "x y")
    for record in (
        (PIXELS, "cat"),
        [PIXELS, "cat"],
        pair(PIXELS, "cat"),
        {"image": PIXELS, "label": "cat"},
        {"img": PIXELS, "labels": "cat"},
        {"pixel_values": PIXELS, "target": "cat", "width": 3},
        {"x": PIXELS, "y": "cat"},
    ):
        made = sample(record)
        assert (made.id, made.label, made.privacy) == ("d-0", "cat", "core")
        assert np.array_equal(made.image, PIXELS)
    assert sample((PIXELS, "cat", "i-7")).id == "i-7"
    assert sample((PIXELS, "cat", np.int64(7))).id == "7"
    facts = {"id": "a", "subject": 4, "domain": "sketch", "privacy": "user"}
    whole = sample({"image": PIXELS, "label": 3} | facts)
    assert (whole.id, whole.label, whole.subject, whole.domain, whole.privacy) == (
        "a",
        "3",
        "4",
        "sketch",
        "user",
    )
    again = sample(whole)
    assert (again.id, again.label, again.subject, again.domain, again.privacy) == (
        "a",
        "3",
        "4",
        "sketch",
        "user",
    )


@pytest.mark.parametrize("label", [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7), "7"])
def test_labels_become_names(label):
    assert sample((PIXELS, label)).label == "7"
    if not isinstance(label, str):
        assert sample((PIXELS, label), class_names=list("abcdefgh")).label == "h"


def test_a_missing_label_is_what_the_policy_says():
    for record in ((PIXELS, None), {"image": PIXELS}, {"image": PIXELS, "label": None, "caption": "x"}):
        assert sample(record).label is None
        with pytest.raises(BadRecord, match="no label"):
            sample(record, policy=RecordPolicy(missing_label="quarantine"))
        with pytest.raises(SourceError, match="no label") as caught:
            sample(record, policy=RecordPolicy(missing_label="fail"))
        assert not isinstance(caught.value, BadRecord)


@pytest.mark.parametrize("label", [-1, -100, np.int64(-1), torch.tensor(-100)])
def test_a_negative_label_is_what_the_policy_says(label):
    with pytest.raises(BadRecord, match="label is -1"):
        sample((PIXELS, label))
    assert sample((PIXELS, label), policy=RecordPolicy(negative_label="class")).label == str(int(label))
    with pytest.raises(SourceError, match="label is -1") as caught:
        list(to_samples((PIXELS, label), offset=0, name="s", policy=RecordPolicy(negative_label="fail")))
    assert not isinstance(caught.value, BadRecord)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        (True, "boolean"),
        (np.bool_(False), "boolean"),
        (torch.tensor(True), "boolean"),
        (3.0, "int"),
        (np.float32(3), "int"),
        (torch.tensor(3.0), "int"),
        (float("nan"), "None"),
        (b"cat", "decode"),
        ("", "empty"),
        ("  ", "empty"),
        ("x" * 2000, "characters"),
        ("\ud800", "Unicode"),
        (10**25, "64 bits"),
        (1j, "complex"),
        (object(), "object"),
        ({"a": 1}, "dict"),
    ],
)
def test_what_is_no_label_is_refused_with_a_word(label, word):
    with pytest.raises(BadRecord) as caught:
        sample((PIXELS, label))
    assert word in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("label", [[1], (1, 2), np.eye(3)[0], torch.eye(3)[0]])
def test_nested_labels_are_refused(label):
    with pytest.raises(BadRecord):
        sample((PIXELS, label))
    (rejected,) = samples((PIXELS, label))
    assert isinstance(rejected, RejectedRecord)


def test_a_label_beyond_the_named_classes_is_refused():
    with pytest.raises(BadRecord, match="2 classes"):
        sample((PIXELS, 2), class_names=["a", "b"])


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (({"petal": 1.5, "sepal": 2.0}, 1), "features"),
        (("https://example.org/a.jpg", 1), "no network"),
        (("no such file.png", 1), "cannot be read"),
        ((None, 1), "NoneType"),
        ((5, 1), "int"),
        (PIXELS, "ndarray"),
        (None, "NoneType"),
        ("ab", "str"),
        ((PIXELS,), "tuple of 1"),
        ((PIXELS, 1, 2, 3), "tuple of 4"),
        ({"label": 3}, "no image"),
        ({"image": PIXELS, "fine_label": 3}, "no label"),
        ({"image": PIXELS, "x": PIXELS, "label": 3}, "more than one"),
        ({"image": PIXELS, "label": 1, "privacy": "secret"}, "core or user"),
        ({"image": PIXELS, "label": 1, "subject": 1.5}, "subject"),
        ({"image": PIXELS, "label": 1, "id": True}, "id"),
        ({"image": {"bytes": None, "path": None}, "label": 1}, "features"),
        ((torch.zeros(3, 4, 4, dtype=torch.int64), 1), "int64"),
        ((torch.full((3, 4, 4), float("nan")), 1), "NaN"),
        ((torch.zeros(3, 4, 4).to_sparse(), 1), "record cannot be read"),
        ((torch.zeros(3, 4, 4, device="meta"), 1), "record cannot be read"),
    ],
)
def test_what_is_no_record_is_refused_with_a_word(record, word):
    with pytest.raises(BadRecord) as caught:
        sample(record)
    assert word in f"{caught.value} {caught.value.hint}"
    (rejected,) = samples(record)
    assert rejected.offset == 10
    assert word in rejected.reason


def test_objects_that_raise_are_refused():
    class Bomb:
        def __getattribute__(self, name):
            raise RuntimeError("boom")

    class Array:
        def __array__(self, dtype=None, copy=None):
            raise OSError("gone")

    class Mapped(dict):
        def __contains__(self, key):
            raise KeyError("no")

    for record in (Bomb(), (Bomb(), 1), (PIXELS, Bomb()), (Array(), 1), Mapped(image=PIXELS)):
        with pytest.raises(BadRecord):
            sample(record)
        assert isinstance(samples(record)[0], RejectedRecord)


def test_reasons_are_the_same_in_every_run():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise OSError(f"{object()} is gone")

    (rejected,) = samples((Broken(), 1))
    assert "<object object> is gone" in rejected.reason


def test_batches_of_every_form():
    images = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    labels = ["a", "b", "c"]
    for batch in (
        (images, labels),
        (images / 255, np.array(labels)),
        [torch.from_numpy(images), ("a", "b", "c")],
        (torch.from_numpy(images).permute(0, 3, 1, 2), labels),
        (list(images), labels),
        ([Image.fromarray(image) for image in images], tuple(labels)),
        {"image": images, "label": labels},
        {"img": list(images), "label": np.array(labels), "caption": ["x", "y", "z"]},
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],
        [Sample(f"s-{10 + i}", image, labels[i]) for i, image in enumerate(images)],
    ):
        made = samples(batch)
        assert [one.id for one in made] == ["s-10", "s-11", "s-12"]
        assert [one.label for one in made] == labels
        assert all(np.array_equal(one.image, image) for one, image in zip(made, images, strict=True))
    assert [one.id for one in samples((images, labels, ["p", "q", "r"]))] == ["p", "q", "r"]
    assert [one.id for one in samples((images, labels, torch.tensor([4, 5, 6])))] == ["4", "5", "6"]
    assert [one.label for one in samples((images, None))] == [None] * 3
    shared = samples({"image": images, "label": labels, "domain": "photo", "subject": ["x", None, "z"]})
    assert [(one.domain, one.subject) for one in shared] == [("photo", "x"), ("photo", None), ("photo", "z")]


def test_grey_batches_and_batches_of_paths(tmp_path):
    made = samples((np.zeros((4, 8, 9), np.uint8), [1, 2, 3, 4]))
    assert [one.image.shape for one in made] == [(8, 9, 3)] * 4
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        path.write_bytes(png())
    for column in (paths, [str(path) for path in paths], np.array([str(path) for path in paths])):
        assert [one.label for one in samples((column, [1, 2]))] == ["1", "2"]


def test_a_batch_may_be_of_one_or_of_none():
    assert [one.label for one in samples((PIXELS[None], [5]))] == ["5"]
    assert samples((np.zeros((0, 4, 4, 3), np.uint8), [])) == []
    assert samples({"image": [], "label": []}) == []


@pytest.mark.parametrize(
    "batch",
    [
        (np.zeros((3, 4, 4, 3), np.uint8), [1, 2]),
        (np.zeros((3, 4, 4, 3), np.uint8), 1),
        (np.zeros((3, 4, 4, 3), np.uint8), [1, 2, 3], ["a", "b"]),
        (np.zeros((3, 4, 4, 3), np.uint8), [1, 2, 3], "one id"),
        ("a.png", [1, 2]),
        {"image": [PIXELS], "label": [1, 2]},
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused_once(batch):
    (rejected,) = samples(batch)
    assert isinstance(rejected, RejectedRecord)
    assert rejected.offset == 10


def test_one_bad_record_of_a_batch_keeps_its_place():
    images = np.full((3, 4, 4, 3), 0.5)
    images[1, 0, 0, 0] = np.nan
    first, bad, last = samples((images, [1, 2, 3], ["a", "b", "c"]))
    assert (first.id, last.id) == ("a", "c")
    assert (bad.offset, bad.id) == (11, "b")
    with pytest.raises(BadRecord, match="NaN"):
        samples((images, [1, 2, 3]), policy=RecordPolicy(on_bad_record="fail"))


def test_columns_are_renamed():
    columns = {"image": "picture", "label": "fine_label"}
    record = {"picture": PIXELS, "fine_label": 3, "coarse_label": 1}
    assert samples(record, columns=columns)[0].label == "3"
    assert samples({"picture": [PIXELS], "fine_label": [3]}, columns=columns)[0].label == "3"


def test_what_a_data_loader_yields():
    images = torch.from_numpy(np.stack([PIXELS] * 5)).permute(0, 3, 1, 2)
    made = [
        one
        for batch in DataLoader(TensorDataset(images, torch.arange(5)), batch_size=2)
        for one in samples(batch)
    ]
    assert [one.label for one in made] == ["0", "1", "2", "3", "4"]
    assert all(np.array_equal(one.image, PIXELS) for one in made)


def test_the_policy_checks_itself():
    with pytest.raises(ConfigError, match="max_side"):
        RecordPolicy(max_side=0)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.binary(max_size=30),
    st.sampled_from(
        [PIXELS, Path("x.png"), Image.fromarray(PIXELS), object(), int, torch.Tensor, threading.Lock()]
    ),
    hnp.arrays(
        dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    ),
    st.builds(torch.zeros, st.lists(st.integers(0, 4), max_size=5)),
)
keys = st.one_of(
    st.sampled_from(
        ["image", "img", "x", "label", "y", "id", "subject", "domain", "privacy", "bytes", "path"]
    ),
    st.text(max_size=3),
    st.integers(),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.tuples(inner, inner, inner),
        st.dictionaries(keys, inner, max_size=5),
    ),
    max_leaves=8,
)


@pytest.mark.long
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_no_value_raises_anything_but_bad_record(value):
    with contextlib.suppress(BadRecord):
        assert sample(value).image.dtype == np.uint8
    for place, one in enumerate(to_samples(value, offset=3, name="s"), start=3):
        if isinstance(one, RejectedRecord):
            assert one.offset == place
            assert one.id
            assert 0 < len(one.reason) <= 500
            one.reason.encode()
        else:
            assert one.image.shape[2] == 3
            assert one.label is None or one.label.strip()


def test_a_policy_has_the_defaults_of_the_configuration():
    from streamcl.config.options.source import SourcePolicy

    plain, described = RecordPolicy(), SourcePolicy()
    for field in fields(plain):
        assert getattr(plain, field.name) == getattr(described, field.name), field.name
