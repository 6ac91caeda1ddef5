from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataset_files import write_cub200
from streams_data import dev_pack, png

from streamcl.errors import SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.cub200 import cub200
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import disjoint
from streams.user.images import ImageLimits, decode


def tiny(root: Path) -> Path:
    folders = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
    return write_cub200(
        root,
        [(f"{f}/{f[4:]}_{i:04d}.png", k, i < 3, png(i)) for k, f in enumerate(folders, 1) for i in range(5)],
    )


def test_the_authors_lists_make_the_sides(tmp_path: Path) -> None:
    train, test = cub200(tiny(tmp_path))
    assert train.classes == ("Black_footed_Albatross", "Laysan_Albatross", "Red_winged_Blackbird")
    assert (len(train), len(test)) == (9, 6)
    assert train[0].id == "001.Black_footed_Albatross/Black_footed_Albatross_0000.png"
    assert train[8].label == "Red_winged_Blackbird"
    check_source(lambda: ReplaySource(train, disjoint(train, 3), 4, test))


def test_lists_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    with (root / "CUB_200_2011" / "train_test_split.txt").open("a") as file:
        file.write("99 1\n")
    with pytest.raises(SourceError, match="different images"):
        cub200(root)


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/secret.png"])
def test_a_list_cannot_name_files_outside(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    root = tiny(tmp_path)
    with (root / "CUB_200_2011" / "images.txt").open("a") as file:
        file.write(f"99 {path}\n")
    with pytest.raises(SourceError, match="leaves the folder"):
        cub200(root)


def test_a_wrong_root_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="train_test_split") as caught:
        cub200(tmp_path)
    assert "streamcl fetch cub200" in str(caught.value.hint)
    root = tiny(tmp_path)
    (root / "CUB_200_2011" / "image_class_labels.txt").unlink()
    with pytest.raises(SourceError, match="image_class_labels"):
        cub200(root)


@pytest.mark.data
def test_real_birds_written_out_are_read_back(tmp_path: Path) -> None:
    pack = dev_pack("cub6_micro")
    names = json.loads(str(pack["meta"]))["classes"]
    files = [pack["jpg"][pack["off"][i] : pack["off"][i + 1]].tobytes() for i in range(len(pack["y"]))]
    write_cub200(
        tmp_path,
        [
            (f"{y + 1:03d}.{names[y]}/{i:04d}.jpg", int(y) + 1, bool(split == 0), files[i])
            for i, (y, split) in enumerate(zip(pack["y"], pack["split"], strict=True))
        ],
    )
    train, test = cub200(tmp_path)
    assert (len(train), len(test)) == (111, 52)
    assert train.classes == tuple(names)
    for side in (train, test):
        sample = side[len(side) // 2]
        index = int(Path(sample.id).stem)
        assert sample.label == names[pack["y"][index]]
        assert (sample.image == decode(files[index], ImageLimits())).all()
