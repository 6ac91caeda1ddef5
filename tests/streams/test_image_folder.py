from __future__ import annotations

import os
from pathlib import Path

import pytest
from streams_data import write_picture

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.image_folder import Layout, image_folder, imagenet_r, imagenet_sketch
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import disjoint


def tree(root: Path, *folders: str, images: int = 10) -> Path:
    for folder in folders:
        for number in range(images):
            write_picture(root / folder / f"{number:02d}.png", number)
    return root


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_the_split_is_seeded_per_class_and_moves_nothing(tmp_path: Path) -> None:
    before = files(tree(tmp_path, "cat", "dog", "tête à tête"))
    train, test = image_folder(tmp_path)
    assert files(tmp_path) == before
    assert train.classes == ("cat", "dog", "tête à tête")
    assert (len(train), len(test)) == (24, 6)
    assert {sample.split("/")[0] for sample in test.ids} == {"cat", "dog", "tête à tête"}
    assert not set(train.ids) & set(test.ids)
    assert image_folder(tmp_path)[1].ids == test.ids
    assert image_folder(tmp_path, seed=1)[1].ids != test.ids
    tree(tmp_path, "emu")  # a class more does not change the split of the others
    assert set(test.ids) <= set(image_folder(tmp_path)[1].ids)


def test_train_and_test_folders_are_the_sides(tmp_path: Path) -> None:
    tree(tmp_path, "train/cat", "train/dog", "val/dog", "val/emu", images=2)
    train, test = image_folder(tmp_path)
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert {train[i].label for i in range(len(train))} == {"cat", "dog"}
    assert test.ids == ("val/dog/00.png", "val/dog/01.png", "val/emu/00.png", "val/emu/01.png")


def test_a_level_of_domains(tmp_path: Path) -> None:
    tree(tmp_path, "photo/cat", "photo/dog", "sketch/cat", "sketch/dog", images=5)
    train, test = image_folder(tmp_path, layout="domains")
    assert {(train[i].domain, train[i].label) for i in range(len(train))} == {
        (domain, label) for domain in ("photo", "sketch") for label in ("cat", "dog")
    }
    assert len(test) == 4  # one of each class in each domain
    check_source(lambda: ReplaySource(train, disjoint(train, 2), 3, test))


def test_files_that_are_no_images_are_not_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "cat", "dog", images=2)
    for name in ("cat/notes.txt", "cat/.hidden.png", ".git/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    with caplog.at_level("INFO", logger="streams"):
        train, test = image_folder(tmp_path)
    assert len(train) + len(test) == 4
    assert "1 files are left out, no images by their names: .txt (1)" in caplog.text


def ids(root: Path, layout: Layout = "classes") -> set[str]:
    train, test = image_folder(root, layout=layout)
    return {*train.ids, *test.ids}


def test_images_in_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog", "dog/left/far", images=2)
    (tmp_path / "dog" / "left" / "round").symlink_to(tmp_path / "dog")  # a circle ends
    assert {"dog/00.png", "dog/left/far/00.png", "cat/01.png"} < ids(tmp_path)
    assert len(ids(tmp_path)) == 6
    assert image_folder(tmp_path)[0].classes == ("cat", "dog")


def test_where_all_images_lie_deeper_the_layout_must_say_which_folders_are_classes(tmp_path: Path) -> None:
    tree(tmp_path, "photo/cat", "photo/dog", "sketch/cat", images=2)
    with pytest.raises(SourceError, match=r"found photo/cat/00\.png") as caught:
        image_folder(tmp_path)
    assert "layout: domains" in str(caught.value.hint)
    assert "layout: nested" in str(caught.value.hint)
    assert image_folder(tmp_path, layout="nested")[0].classes == ("photo", "sketch")
    assert image_folder(tmp_path, layout="domains")[0].classes == ("cat", "dog")


def test_links_that_lead_nowhere_are_no_images(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog", images=2)
    (tmp_path / "cat" / "self.png").symlink_to("self.png")
    (tmp_path / "cat" / "gone.png").symlink_to("nothing.png")
    assert ids(tmp_path) == {"cat/00.png", "cat/01.png", "dog/00.png", "dog/01.png"}


def test_every_extension_that_pillow_reads_is_an_image(tmp_path: Path) -> None:
    tree(tmp_path, "cat", images=2)
    names = ["a.AVIF", "b.jfif", "c.JPG", "d.pnm", "e.apng", "f.j2k", "g.tga", "h.webp"]
    for name in names:
        (tmp_path / "cat" / name).write_bytes(b"")
    assert ids(tmp_path) == {f"cat/{name}" for name in [*names, "00.png", "01.png"]}


def test_images_beside_the_classes_or_the_sides_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, "train/cat", "test/cat", "val/cat", "val/dog", images=2)
    write_picture(tmp_path / "train" / "stray.png")
    assert len(ids(tmp_path)) == 4
    assert "val: 4 images are left out, the sides are train and test" in caplog.text
    assert "1 images are left out, they lie in no class's folder" in caplog.text
    caplog.clear()
    tree(tmp_path / "other", "photo/cat", images=2)
    write_picture(tmp_path / "other" / "photo" / "stray.png")
    assert len(ids(tmp_path / "other", "domains")) == 2
    assert "1 images are left out, they lie in no class's folder" in caplog.text


def test_names_that_are_no_utf8_are_read_under_escaped_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, "cat", images=2)
    write_picture(tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"x\xe9.png"))
    write_picture(tmp_path / "café" / "x.png")
    train, test = image_folder(tmp_path)
    assert train.classes == ("caf\\xe9", "café", "cat")
    assert {"caf\\xe9/x\\xe9.png", "café/x.png"} < {*train.ids, *test.ids}
    assert "the names of 1 images are no UTF-8" in caplog.text
    check_source(lambda: ReplaySource(train, disjoint(train, 1), 3, test))


@pytest.mark.parametrize("reader", [imagenet_r, imagenet_sketch])
def test_imagenet_readers_take_wordnet_folders_only(tmp_path: Path, reader) -> None:  # type: ignore[no-untyped-def]
    inside = "sketch" if reader is imagenet_sketch else "imagenet-r"
    tree(tmp_path / inside, "n01443537", "n01484850", "misc")
    train, test = reader(tmp_path)
    assert train.classes == ("n01443537", "n01484850")
    assert (len(train), len(test)) == (16, 4)
    assert reader(tmp_path / inside)[0].ids == train.ids


def test_wrong_roots_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; expected <class>"):
        image_folder(tmp_path / "absent")
    with pytest.raises(SourceError, match="it is empty"):
        image_folder(tmp_path)
    with pytest.raises(SourceError, match="WordNet id") as caught:
        imagenet_sketch(tree(tmp_path, "cat"))
    assert "by hand" in str(caught.value.hint)
    with pytest.raises(SourceError, match="is not a folder"):
        image_folder(tmp_path / "cat" / "00.png")


def test_impossible_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="150"):
        image_folder(tree(tmp_path, "cat"), test_percent=150)
