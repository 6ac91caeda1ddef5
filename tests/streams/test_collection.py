from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from streams_data import collection, picture, png, write_picture

from streamcl.errors import BadRecord, ConfigError
from streams.replay.collection import Collection, View, groups_of


def test_every_kind_of_stored_image_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    stored = [picture(0), grey, png(1), write_picture(tmp_path / "a.png", 2)]
    made = collection([0, 1, -1, 0], 2, images=stored)
    assert np.array_equal(made[0].image, picture(0))
    assert np.array_equal(made[1].image, np.stack([grey] * 3, -1))
    assert np.array_equal(made[2].image, picture(1))
    assert np.array_equal(made[3].image, picture(2))
    assert [made[index].label for index in range(4)] == ["c0", "c1", None, "c0"]


def test_samples_say_their_domain_and_subject() -> None:
    made = collection([0, 1], 2, domains=[1, -1])
    with_subjects = Collection(
        "x", made.images, made.labels, made.classes, made.ids, made.domains, groups_of(["ann", "bob"])
    )
    assert [with_subjects[i].domain for i in range(2)] == ["d1", None]
    assert [with_subjects[i].subject for i in range(2)] == ["ann", "bob"]


def test_images_are_decoded_only_when_asked_for(tmp_path: Path) -> None:
    made = collection([0, 0], 1, images=[write_picture(tmp_path / "a.png"), tmp_path / "absent.png"])
    assert len(made) == 2
    made[0]
    with pytest.raises(BadRecord):
        made[1]


def test_fetch_leaves_out_what_is_gone_or_bad() -> None:
    made = collection([0, 0, 0], 1, images=[picture(0), b"no image", picture(2)])
    (found,) = made.fetch(["drawn/0002", "drawn/0001", "elsewhere"])
    assert found.id == "drawn/0002"
    assert np.array_equal(found.image, picture(2))


def test_take_keeps_images_labels_and_ids_together() -> None:
    made = collection([0, 1, 2, 0], 3, domains=[0, 0, 1, 1])
    some = made.take([3, 1]).take([1, 0])
    for index, original in enumerate([1, 3]):
        assert some[index].id == made[original].id
        assert some[index].label == made[original].label
        assert some[index].domain == made[original].domain
        assert np.array_equal(some[index].image, picture(original))


def test_where_joins_classes_and_domains() -> None:
    made = collection([0, 1, 0, 1, -1], 2, domains=[0, 0, 1, 1, 1])
    assert made.where().tolist() == [0, 1, 2, 3, 4]
    assert made.where(("c1",)).tolist() == [1, 3]
    assert made.where(("c1",), ("d1",)).tolist() == [3]
    assert collection([0], 1).where(domains=("d0",)).tolist() == []


def test_a_view_leaves_bad_images_out_of_loops_only() -> None:
    made = collection([0, 0, 0], 1, images=[picture(0), b"", picture(2)])
    view = View(made, np.arange(3))
    assert len(view) == 3
    assert [sample.id for sample in view] == ["drawn/0000", "drawn/0002"]
    assert [sample.id for sample in view[1:]] == ["drawn/0002"]
    with pytest.raises(BadRecord):
        view[1]


@pytest.mark.parametrize("labels", [[0, 2], [-2, 0]])
def test_labels_outside_the_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(ConfigError, match="there are 2 classes"):
        collection(labels, 2)


def test_ids_must_be_unique_and_as_many_as_images() -> None:
    made = collection([0, 0], 1)
    with pytest.raises(ConfigError, match="same id"):
        Collection("x", made.images, made.labels, made.classes, ("a", "a"))
    with pytest.raises(ConfigError, match="one of each per image"):
        Collection("x", made.images, made.labels, made.classes, ("a",))
