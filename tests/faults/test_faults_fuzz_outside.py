"""Fuzzers from outside: finished runs damaged file by file, odd values in YAML, hostile objects, pictures."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import shutil
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from fault_runs import TINY, lines, streamcl, write_config
from fuzzing import DAMAGE, ITEM, QUIET, damage, sound
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from streamcl.config.load import load_config
from streamcl.errors import BadRecord, ConfigError, StreamclError
from streamcl.events import Batch
from streams.offsets import OffsetChecked
from streams.prefetch import Prefetcher
from streams.user.images import ImageLimits, decode
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

pytestmark = [pytest.mark.faults, pytest.mark.long]

MANY = {"phases": [Phase.generate], **(QUIET | {"derandomize": False})}

# -- a finished run's directory ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a YAML file and a finished run in which a class was forgotten, with its receipt."""
    folder = tmp_path_factory.mktemp("finished")
    forget = [{"offset": 40, "class": "ant"}]
    write_config(
        folder, learner="ridge", checkpoint={"every_samples": 16, "keep": 2}, forgetting={"requests": forget}
    )
    assert streamcl("run", "stream.yaml", folder=folder).code == 0
    assert list((folder / "runs/stream/receipts").iterdir())
    return folder


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.name != "lock")


def survives(finished: Path, damages) -> None:
    """Damage files, by their numbers; every command then ends well, twice too, and none leaves files."""
    folder = finished.with_name(finished.name + "-damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    run = folder / "runs" / "stream"
    for which, kind, where, byte in damages:
        damage(files_of(run)[which], kind, where, byte)
    for command in ("doctor", "status", "report", "forget"):
        more = ("--class", "bee") if command == "forget" else ()
        sound(streamcl(command, "runs/stream", *more, folder=folder), {0, 1, 2, 4, 6})
    sound(streamcl("run", "stream.yaml", folder=folder), {0, 2, 4, 6})
    before = len(files_of(run))
    sound(streamcl("run", "stream.yaml", folder=folder), {0, 2, 4, 6})
    assert len(files_of(run)) <= before


@settings(max_examples=3, **QUIET)
@given(st.lists(DAMAGE, min_size=1, max_size=2))
def test_a_damaged_finished_run_is_never_a_surprise(finished, damages):
    count = len(files_of(finished / "runs/stream"))
    survives(finished, [(int(which * (count - 2)), *rest) for which, *rest in damages])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "flip", "gone", "folder", "noise", "insert"])
def test_every_file_of_a_finished_run_damaged_alone(finished, kind):
    for which in range(len(files_of(finished / "runs/stream"))):
        survives(finished, [(which, kind, 0.5, 1)])


# -- values in the YAML ------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    7,
    0.5,
    -1e-4,
    "1e-4",
    ".inf",
    "",
    "x",
    "é" * 40,
    [],
    [[]],
    {},
    {"x": 1},
]
BASE = {
    "name": "run",
    "seed": 0,
    "source": {"class": "fault_sources:Pictures", "args": {"records": 32}, "prefetch": 2},
    "scenario": None,
    "batch": 8,
    "max_samples": 16,
    "backbone": TINY,
    "learner": {
        "name": "ridge_lora",
        "ridge": {"blocks": [1, 2]},
        "lora": {"rank": 2, "warmup_samples": 8, "steps": 1},
    },
    "shift": {"name": "relative_rise", "loss_threshold": 2.8},
    "evaluate": {"every_samples": 8, "max_per_part": 2},
    "checkpoint": {"every_samples": 8, "keep": 1},
    "forgetting": {"requests": [{"offset": 8, "class": "ant"}]},
    "max_skipped": 2,
    "report": {"samples": 1},
    "device": "cpu",
    "threads": 1,
}


def places(tree, path=()):
    """The path of every value in a nest of mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(tree, path, value):
    """The nest with another value at the path; as it is where an earlier change took that place away."""
    if not path:
        return value
    key, *rest = path
    if isinstance(tree, dict) and key in tree:
        return {**tree, key: replaced(tree[key], rest, value)}
    if isinstance(tree, list) and key in range(len(tree)):
        return [*tree[:key], replaced(tree[key], rest, value), *tree[key + 1 :]]
    return tree


CHANGES = st.lists(
    st.tuples(st.sampled_from(list(places(BASE))), st.sampled_from(VALUES)), min_size=1, max_size=3
)


def runs_or_is_refused(folder: Path, changes) -> None:
    config = BASE
    for path, value in changes:
        config = replaced(config, path, value)
    (folder / "stream.yaml").write_text(json.dumps(config))
    checked = streamcl("validate", "stream.yaml", folder=folder, seconds=120)
    sound(checked, {0, 2})
    assert checked.code == 0 or "stream.yaml:" in checked.err
    done = streamcl("run", "stream.yaml", "--quiet", folder=folder)
    sound(done, {0, 2, 3, 5, 6} if checked.code == 0 else {2})
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} <= {
        "stream.yaml",
        "runs",
    }


@settings(max_examples=5, **QUIET)
@given(CHANGES)
def test_odd_values_are_refused_or_run(tmp_path_factory, changes):
    runs_or_is_refused(tmp_path_factory.mktemp("values"), changes)


@pytest.mark.slow
@settings(max_examples=120, **MANY)
@given(CHANGES)
def test_many_odd_values(tmp_path_factory, changes):
    runs_or_is_refused(tmp_path_factory.mktemp("values"), changes)


# -- hostile objects ---------------------------------------------------------------------------------------

ERRORS = [ValueError, KeyError, RecursionError, MemoryError, OSError, StopIteration]
REPLIES = [None, -1, 0, 3, 2**70, 1.5, "x", b"x", [], [1], {}, {"a": object()}, object(), ()]
METHODS = ["__len__", "__getitem__", "__iter__", "__next__", "state_dict", "load_state_dict"]
FACTS = ["classes", "holdout", "shifts", "length"]


def hostile(methods, facts, items):
    """An object with these attributes, and methods of which each raises, answers nonsense or gives items."""

    def method(reply):
        def answer(self, *args):
            if reply == "items":
                return iter(items) if not args else items[args[0] % max(1, len(items))]
            if isinstance(reply, type):
                raise reply("x")
            return reply

        return answer

    body = {name: method(reply) for name, reply in methods.items()}
    return type("Hostile", (), body | facts)()


@settings(max_examples=200, **QUIET)
@given(
    st.dictionaries(st.sampled_from(METHODS), st.sampled_from(["items", *ERRORS, *REPLIES]), max_size=4),
    st.dictionaries(st.sampled_from(FACTS), st.sampled_from(REPLIES), max_size=2),
    st.lists(ITEM, min_size=1, max_size=4),
    st.booleans(),
)
def test_a_hostile_object_is_a_stream_or_an_error_of_ours(methods, facts, items, deterministic):
    with contextlib.suppress(StreamclError):
        source = IterableSource(
            lambda: hostile(methods, facts, items),
            batch_size=2,
            policy=RecordPolicy(),
            deterministic=deterministic,
            retries=1,
            sleep=lambda seconds: None,
        )
        guarded = Prefetcher(OffsetChecked(source), 0)
        state = guarded.state_dict()
        for event in islice(guarded, 20):
            assert isinstance(event, Batch)
            state = guarded.state_dict()
        if source.replayable:
            guarded.load_state_dict(state)
            list(islice(guarded, 2))


# -- image files -------------------------------------------------------------------------------------------


def mutated_pictures(count: int):
    """Encoded pictures with up to eight bytes changed, or cut; the first ones are whole."""
    rng = np.random.default_rng(0)
    for number in range(count):
        buffer = io.BytesIO()
        kind = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")[number % 6]
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, kind)
        data = bytearray(buffer.getvalue())
        for _ in range(number % 9):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        yield kind.lower(), bytes(data[: len(data) if number % 5 else int(rng.integers(1, len(data)))])


def test_a_folder_of_mutated_files_is_learned_or_set_aside_one_by_one(tmp_path):
    count = 120
    (tmp_path / "pictures").mkdir()
    for number, (kind, data) in enumerate(mutated_pictures(count)):
        (tmp_path / "pictures" / f"{number:03d}.{kind}").write_bytes(data)
    write_config(tmp_path, learner="ridge", source={"class": "fault_sources:files"})
    sound(streamcl("run", "stream.yaml", folder=tmp_path), {0})
    run = tmp_path / "runs" / "stream"
    learned, aside = lines(run, "predictions"), lines(run, "quarantine")
    assert sorted(record["offset"] for record in learned + aside) == list(range(count))
    assert min(len(learned), len(aside)) > 10


# -- growth ------------------------------------------------------------------------------------------------


def decode_all(pictures, folder):
    for _, data in pictures:
        try:
            decode(data, ImageLimits(max_pixels=10_000, max_side=1000))
        except BadRecord:
            continue


def read_all(pictures, folder):
    source = IterableSource(
        lambda: ((data, number) for number, (_, data) in enumerate(pictures)), batch_size=8
    )
    assert sum(len(event) for event in source)


def validate_all(pictures, folder):
    for _, data in pictures[:40]:
        (folder / "odd.yaml").write_bytes(b"seed: 1\n" + data.decode("latin-1").encode())
        with pytest.raises(ConfigError):
            load_config(folder / "odd.yaml")


@pytest.mark.parametrize("boundary", [decode_all, read_all, validate_all])
def test_what_was_refused_leaves_nothing_in_memory(tmp_path, boundary):
    pictures = list(mutated_pictures(120))
    boundary(pictures, tmp_path)
    boundary(pictures, tmp_path)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            boundary(pictures, tmp_path)
        gc.collect()
        assert (
            tracemalloc.get_traced_memory()[0] - before < 100_000
        )  # bytes; one picture or text a time is more
    finally:
        tracemalloc.stop()
