from __future__ import annotations

import io
import tarfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams_data import collection, picture, png

from streamcl import registry
from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.events import Batch
from streamcl.registry import SOURCES
from streamcl.testing.source_checks import check_source
from streams.build import named_source
from streams.replay.replay import ReplaySource, Stream
from streams.replay.scenarios import as_is
from streams.user.records import RecordPolicy

LABELS = [0, 1, 2] * 8


def a_pair(count: int = 24) -> Any:
    return collection(LABELS[:count], 3), collection(LABELS, 3)


def a_collection() -> Any:
    return collection(LABELS, 3, domains=[0] * 12 + [1] * 12)


def a_stream(seed: int = 0) -> Any:
    train = collection([0] * (seed + 1), 1)
    return Stream(train, as_is(train))


def a_source() -> Any:
    train = collection(LABELS, 3)
    return ReplaySource(train, as_is(train), 4)


def nonsense() -> Any:
    return [1, 2, 3]


not_callable = 7


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a_pair", "a_collection", "a_stream", "a_source", "nonsense", "not_callable", "absent")
    points = [EntryPoint(name, f"{__name__}:{name}", registry.SOURCES.group) for name in names]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "streamcl.sources"
        return [point for point in points if name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_built_in_sources_and_plugins_are_named() -> None:
    assert {"demo_digits", "core50", "npz", "a_pair"} <= set(SOURCES.names())


def test_a_data_set_becomes_a_source_in_the_scenario_asked_for(tmp_path: Path) -> None:
    x = np.stack([picture(index) for index in range(24)])
    np.savez(tmp_path / "a.npz", x=x, y=np.array(LABELS), split=np.arange(24) // 18)
    args = {"path": str(tmp_path / "a.npz")}
    check_source(lambda: named_source("npz", args, ("disjoint", {"parts": 3}), batch_size=4))
    source = named_source("npz", args, ("disjoint", {"parts": 3}), batch_size=4)
    assert len(source.info.shifts) == 2
    assert len(source.info.holdout) == 3


def test_without_a_scenario_collections_are_shuffled_unless_they_have_domains() -> None:
    shuffled = [s.id for batch in named_source("a_pair") for s in batch.samples]  # type: ignore[union-attr]
    assert shuffled != sorted(shuffled)
    assert shuffled != [s.id for batch in named_source("a_pair", seed=1) for s in batch.samples]  # type: ignore[union-attr]
    source = named_source("a_collection")
    assert source.info.shifts == (12,)
    assert source.info.holdout == ()


def test_streams_keep_their_order_and_take_the_seed() -> None:
    assert named_source("a_stream", seed=6).info.length == 7
    assert named_source("a_stream", {"seed": 2}, seed=6).info.length == 3
    assert named_source("a_stream", scenario=("iid", {}), seed=6).info.length == 7


def test_a_source_of_its_own_goes_through() -> None:
    assert named_source("a_source").info.length == 24
    with pytest.raises(ConfigError, match="makes its own order"):
        named_source("a_source", scenario=("iid", {}))


@pytest.mark.parametrize(
    ("name", "args", "said", "hint"),
    [
        ("demo_digit", {}, "there is no source 'demo_digit'", "did you mean 'demo_digits'?"),
        ("a_pair", {"cont": 1}, "no argument 'cont'", "did you mean 'count'?"),
        ("npz", {}, "needs the argument 'path'", ""),
        ("a_pair", {"count": "many"}, "cannot be made", ""),
        ("nonsense", {}, "returned a list", "expected a streams.replay.replay.Stream"),
        ("not_callable", {}, "is not callable", ""),
        ("absent", {}, "does not load", ""),
    ],
)
def test_mistakes_are_named(name: str, args: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        named_source(name, args)
    assert hint in str(caught.value.hint)


def test_the_policy_reaches_images_and_sources() -> None:
    strict = named_source("a_pair", batch_size=4, policy=RecordPolicy(max_side=4))  # the images are 8 x 8
    batch = next(iter(strict))
    assert isinstance(batch, Batch)
    assert len(batch.rejected) == 4
    with pytest.raises(BadRecord):
        list(named_source("a_pair", policy=RecordPolicy(max_side=4, on_bad_record="fail")))


def test_webdataset_shards_are_a_source(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for index in range(5):
            for name, content in ((f"{index}.png", png(index)), (f"{index}.cls", b"%d" % (index % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    args = {"shards": str(tmp_path / "a.tar")}
    check_source(lambda: named_source("webdataset", args, batch_size=2))
    sizes = [len(batch) for batch in named_source("webdataset", args, batch_size=2)]  # type: ignore[arg-type]
    assert sizes == [2, 2, 1]


def test_impossible_batches_and_absent_data() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        named_source("a_pair", batch_size=0)
    with pytest.raises(SourceError, match="does not exist"):
        named_source("core50", {"root": "/nowhere/at/all"})
