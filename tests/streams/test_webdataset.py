import io
import json

import numpy as np
import pytest
from dataset_files import write_tar
from PIL import Image

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source, first_events, samples_of
from streams.datasets.tar_samples import split_name
from streams.datasets.webdataset import Shards, expand_braces, shard_paths, webdataset
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def png(number):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "mit Leerzeichen ü"
    folder.mkdir()
    for shard in range(3):
        members = []
        for i in range(shard * 5, shard * 5 + 5):
            members += [(f"train/{i:04}.png", png(i)), (f"train/{i:04}.cls", str(i % 3).encode())]
        write_tar(folder / f"part-{shard:03}.tar", members)
    return folder


def test_shards_are_a_source(shards):
    check_source(lambda: webdataset(f"{shards}/part-{{000..002}}.tar", batch_size=4), limit=None)
    source = webdataset(f"{shards}/part-*.tar", class_names=["a", "b", "c"], batch_size=4)
    samples = samples_of(first_events(source))
    assert [sample.id for sample in samples] == [f"train/{i:04}" for i in range(15)]
    assert [sample.label for sample in samples] == ["abc"[i % 3] for i in range(15)]
    assert all(np.array_equal(sample.image, picture(i)) for i, sample in enumerate(samples))
    assert source.replayable
    assert source.info.classes == ("a", "b", "c")


def test_it_reads_what_webdataset_writes(tmp_path):
    import webdataset as wds

    with wds.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(4):
            sink.write({"__key__": f"k{i}", "png": picture(i), "json": {"label": f"l{i}", "domain": "d"}})
    samples = samples_of(first_events(webdataset(str(tmp_path / "a.tar"))))
    assert [(sample.id, sample.label, sample.domain) for sample in samples] == [
        (f"k{i}", f"l{i}", "d") for i in range(4)
    ]
    assert all(np.array_equal(sample.image, picture(i)) for i, sample in enumerate(samples))


def test_labels_in_every_member_that_may_hold_one(tmp_path):
    facts = {"label": "from json", "subject": "s", "privacy": "user", "id": "own"}
    members = [
        *[("a.jpg", png(0)), ("a.cls", b" 7\n")],
        *[("b.seg.PNG", png(1)), ("b.txt", b"cat \n")],
        *[("c.json", json.dumps(facts).encode()), ("c.webp", png(2)), ("c.txt", b"not this")],
        *[("d.png", png(3))],
        *[("e.png", png(4)), ("e.json", b"5")],
        *[("f.png", png(5)), ("f.json", b'{"cls": 3}'), ("f.mp4", b"x" * 100)],
        *[("g.cls", b"dog"), ("g.png", png(6))],
    ]
    write_tar(tmp_path / "a.tar.gz", members, "w:gz")
    source = webdataset(str(tmp_path / "a.tar.gz"), batch_size=2)
    samples = samples_of(first_events(source))
    assert [sample.label for sample in samples] == ["7", "cat", "from json", None, "5", "3", "dog"]
    assert [sample.id for sample in samples] == ["a", "b", "own", "d", "e", "f", "g"]
    assert (samples[2].subject, samples[2].privacy) == ("s", "user")
    check_source(lambda: webdataset(str(tmp_path / "a.tar.gz"), batch_size=2))


def test_bad_samples_keep_their_places(tmp_path):
    members = [
        ("good0.png", png(0)),
        *[("../../etc/evil.png", png(1)), ("../../etc/evil.cls", b"1")],
        ("/tmp/absolute.png", png(2)),
        ("a/../../b.png", png(2)),
        ("link.png", None),
        ("noimage.cls", b"3"),
        *[("badjson.png", png(3)), ("badjson.json", b"{")],
        *[("deep.png", png(3)), ("deep.json", b"[" * 100_000)],
        *[("badtext.png", png(3)), ("badtext.cls", b"\xff\xfe")],
        *[("negative.png", png(3)), ("negative.cls", b"-1")],
        ("text.jpg", b"not a picture"),
        ("large.png", b"x" * 5000),
        ("good1.png", png(4)),
    ]
    write_tar(tmp_path / "a.tar", members)
    make = lambda: webdataset(  # noqa: E731
        str(tmp_path / "a.tar"), policy=RecordPolicy(max_file_bytes=4000), name="w"
    )
    (event,) = first_events(make())
    assert [sample.id for sample in event.samples] == ["good0", "good1"]
    reasons = [one.reason for one in event.rejected]
    words = [
        "outside",
        "outside",
        "outside",
        "no image",
        "unreadable",
        "unreadable",
        "unreadable",
        "label is -1",
    ]
    words += ["known format", "member .png has 5000 bytes"]
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
    check_source(make)


def flat(grey):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


def read(path, members):
    """(id, label, grey level) of each sample, and the reasons of those that were refused."""
    write_tar(path, members)
    events = first_events(webdataset(str(path)))
    found = [(each.id, each.label, int(each.image[0, 0, 0])) for each in samples_of(events)]
    return found, [one.reason for event in events for one in event.rejected]


STRAY = [
    ("._a.cls", b"\0\5"),
    ("d/._a.png", b"\0"),
    (".DS_Store", b"x"),
    ("__index__", b"1"),
    ("README", b"r"),
]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a.cls", b"0"), *STRAY, ("a.png", flat(10)), *STRAY, ("b.cls", b"1"), ("b.png", flat(20))], "01"),
        ([("a.png", flat(10)), ("a.cls", b"\xef\xbb\xbf0\r\n"), ("b.png", flat(20)), ("b.txt", b"1")], "01"),
        ([("a.seg.png", flat(5)), ("a.png", flat(10)), ("a.seg.json", b"[9]"), ("a.cls", b"0")], "0"),
        ([("a.5.png", flat(10)), ("a.5.cls", b"0"), ("b.6.png", flat(20)), ("b.6.cls", b"1")], "01"),
        ([("A.PNG", flat(10)), ("A.CLS", b"0"), ("b.v.png", flat(20)), ("b.CLS", b"1")], "01"),
    ],
)
def test_stray_members_and_second_extensions_leave_each_image_its_own_label(tmp_path, members, expected):
    found, refused = read(tmp_path / "a.tar", members)
    assert [(label, grey) for _, label, grey in found] == [(each, 10 * (int(each) + 1)) for each in expected]
    assert not refused


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            [("x_0.5.png", flat(10)), ("x_0.5.cls", b"0"), ("x_0.6.png", flat(20)), ("x_0.6.cls", b"1")],
            "several",
        ),
        ([("x_0.5.png", flat(10)), ("x_0.6.cls", b"1")], "does not belong"),
        ([("a.png", flat(10)), ("a.cls", b"0"), ("a.png", flat(20)), ("a.cls", b"1")], "twice"),
        ([(f"v1.0_{k}.png", flat(k)) for k in range(40)], "more than 16 pictures"),
        ([("a.png", flat(10)), ("a.cls", b"\xff\xfe3\x00")], "unreadable"),
    ],
)
def test_samples_whose_label_is_open_are_refused(tmp_path, members, words):
    found, refused = read(tmp_path / "a.tar", members)
    assert not found
    assert len(refused) == 1
    assert words in refused[0]


@pytest.mark.parametrize("order", [("a.png", "b.png", "a.cls"), ("a.cls", "b.cls", "a.png")])
def test_a_sample_whose_members_are_apart_ends_the_stream(tmp_path, order):
    members = [(name, flat(1) if name.endswith("png") else b"1") for name in order]
    with pytest.raises(SourceError, match="in more than one place") as caught:
        read(tmp_path / "a.tar", members)
    assert "--sort=name" in str(caught.value.hint)


def test_a_member_that_is_apart_is_found_after_a_restart_too(tmp_path):
    write_tar(
        tmp_path / "a.tar", [("a.png", flat(1)), ("b.png", flat(2)), ("c.png", flat(3)), ("a.cls", b"1")]
    )
    make = lambda: webdataset(str(tmp_path / "a.tar"), batch_size=1)  # noqa: E731
    for read_before in (1, 2):
        first, states = make(), []
        with pytest.raises(SourceError, match="in more than one place"):
            states.extend(first.state_dict() for _ in first)
        second = make()
        second.load_state_dict(states[read_before - 1])
        with pytest.raises(SourceError, match="'a' in more than one place"):
            first_events(second)


def test_the_samples_are_those_that_the_webdataset_package_groups(tmp_path):
    from webdataset.tariterators import group_by_keys

    names = ["p/a.png", "p/a.cls", ".DS_Store", "p.q/b.seg.png", "p.q/b.cls", "notes", "c.png", "c.JSON"]
    content = {"png": flat(1), "cls": b"1", "JSON": b"{}"}
    members = [(name, content.get(name.rpartition(".")[2], b"")) for name in names]
    write_tar(tmp_path / "a.tar", members)
    grouped = list(group_by_keys({"fname": name, "data": data, "__url__": "a.tar"} for name, data in members))
    ours = [sample.id for sample in samples_of(first_events(webdataset(str(tmp_path / "a.tar"))))]
    assert ours == [sample["__key__"] for sample in grouped]


def test_a_damaged_shard_is_an_error_that_names_it(shards):
    path = shards / "part-001.tar"
    path.write_bytes(path.read_bytes()[:3300])
    source = webdataset(f"{shards}/part-*.tar", batch_size=2, policy=RecordPolicy())
    with pytest.raises(SourceError, match=r"'part-001\.tar' is damaged at member"):
        first_events(source)
    path.write_bytes(b"no tar at all")
    with pytest.raises(SourceError, match=r"part-001\.tar"):
        first_events(webdataset(f"{shards}/part-*.tar"))
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"part-001\.tar"):
        first_events(webdataset(f"{shards}/part-*.tar"))


def test_shards_that_vanish_are_tried_again_then_an_error(shards):
    paths, pauses = shard_paths([f"{shards}/part-*.tar"]), []
    source = IterableSource(lambda: Shards(paths, 2**20), batch_size=5, sleep=pauses.append)
    events = iter(source)
    next(events)
    (shards / "part-002.tar").unlink()
    with pytest.raises(SourceError, match="4 times: FileNotFoundError"):
        list(events)
    assert pauses == [0.5, 1.0, 2.0]


def test_names_of_shards():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert split_name("x/y.z/a.b.JPG") == ("x/y.z/a", "b.jpg")
    for wrong in ("missing.tar", "s3://example/{0..1}.tar", "pipe:cat x", [], "{0..99999999}.tar"):
        with pytest.raises(ConfigError):
            webdataset(wrong)
