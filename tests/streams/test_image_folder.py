from __future__ import annotations

from pathlib import Path

import pytest
from streams_data import write_picture

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.image_folder import image_folder, imagenet_r, imagenet_sketch
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


def test_files_that_are_no_images_are_not_records(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog", images=2)
    for name in ("cat/notes.txt", "cat/.hidden.png", ".git/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    train, test = image_folder(tmp_path)
    assert len(train) + len(test) == 4


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
