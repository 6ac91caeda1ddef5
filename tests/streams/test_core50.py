from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_core50
from PIL import Image
from streams_data import dev_pack

from streamcl.errors import SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.core50 import CATEGORIES, OBJECTS, TEST_SESSIONS, core50
from streams.replay.collection import Collection
from streams.replay.replay import ReplaySource, holdout_parts
from streams.replay.scenarios import as_is, disjoint, domain_incremental, new_instances_and_classes


def test_sessions_split_train_from_test_in_film_order(tmp_path: Path) -> None:
    train, test = core50(write_core50(tmp_path))
    assert (len(train), len(test)) == (8 * 12, 3 * 12)
    assert train.domains is not None
    assert list(dict.fromkeys(train[i].domain for i in range(len(train)))) == [
        f"s{n}" for n in (1, 2, 4, 5, 6, 8, 9, 11)
    ]
    assert {test[i].domain for i in range(len(test))} == {f"s{n}" for n in TEST_SESSIONS}
    assert train.ids[:4] == (
        *(f"s1/o1/C_01_01_{frame:03d}.png" for frame in range(3)),
        "s1/o2/C_01_02_000.png",
    )
    assert [train[i].subject for i in (0, 3, 6, 9)] == [
        "o1",
        "o2",
        "o10",
        "o11",
    ]  # numeric, not o1, o10, o11, o2


def test_labels_are_objects_or_categories(tmp_path: Path) -> None:
    root = write_core50(tmp_path)
    objects, _ = core50(root)
    categories, _ = core50(root, level="category")
    assert objects.classes == OBJECTS
    assert categories.classes == CATEGORIES
    assert [objects[i].label for i in (0, 3, 6, 9)] == [
        "plug_adapter1",
        "plug_adapter2",
        "mobile_phone5",
        "scissors1",
    ]
    assert [categories[i].label for i in (0, 3, 6, 9)] == ["plug_adapter"] * 2 + ["mobile_phone", "scissors"]


def test_all_three_scenarios_come_out_of_the_layout(tmp_path: Path) -> None:
    train, test = core50(write_core50(tmp_path))
    film = as_is(train)
    assert film.shifts == tuple(range(12, 96, 12))
    assert np.array_equal(domain_incremental(train).indices, film.indices)
    assert len(disjoint(train, 4).shifts) == 3
    assert len(new_instances_and_classes(train, 2).parts) == 16
    assert [part.name for part in holdout_parts(domain_incremental(train), train, test)] == [
        "s3",
        "s7",
        "s10",
    ]
    check_source(lambda: ReplaySource(train, domain_incremental(train), 10, test))


def test_the_inner_folder_is_a_root_too(tmp_path: Path) -> None:
    write_core50(tmp_path)
    assert core50(tmp_path / "core50_128x128")[0].ids == core50(tmp_path)[0].ids


def test_a_wrong_root_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; expected CORe50's") as caught:
        core50(tmp_path / "absent")
    assert "streamcl fetch core50" in str(caught.value.hint)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(SourceError, match="found holiday"):
        core50(tmp_path)


@pytest.mark.data
def test_real_frames_written_out_are_read_back(tmp_path: Path) -> None:
    pack = dev_pack("core50_micro")
    for index in range(len(pack["y"])):
        session, thing, frame = (
            int(pack[key][index]) + add for key, add in (("d", 1), ("y", 1), ("frame", 0))
        )
        path = tmp_path / f"s{session}" / f"o{thing}" / f"C_{session:02d}_{thing:02d}_{frame:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pack["x"][index]).save(path)
    train, test = core50(tmp_path)
    assert (len(train), len(test)) == (70, 30)
    expected = {
        (f"s{d + 1}", OBJECTS[y], x.tobytes())
        for d, y, x in zip(pack["d"], pack["y"], pack["x"], strict=True)
    }
    assert {fact for side in (train, test) for fact in facts(side)} == expected


def facts(side: Collection) -> list[tuple[str | None, str | None, bytes]]:
    samples = [side[index] for index in range(len(side))]
    return [(sample.domain, sample.label, sample.image.tobytes()) for sample in samples]
