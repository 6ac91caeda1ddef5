from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write_cifar100_meta, write_cifar100_side
from streams_data import dev_pack

from streamcl.errors import SourceError
from streamcl.testing.source_checks import check_source
from streams.datasets.cifar100 import cifar100, read_pickle
from streams.replay.replay import ReplaySource
from streams.replay.scenarios import disjoint


def tiny(root: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    write_cifar100_side(root, "train", images[:4], [0, 1, 2, 0], [0, 0, 1, 0])
    write_cifar100_side(root, "test", images[4:], [1, 2], [0, 1])
    write_cifar100_meta(root, ["apple", "bear", "clock"], ["alive", "made"])
    return images


def test_planes_become_pixels(tmp_path: Path) -> None:
    images = tiny(tmp_path)
    train, test = cifar100(tmp_path)
    assert train.classes == test.classes == ("apple", "bear", "clock")
    for index in range(4):
        assert np.array_equal(train[index].image, images[index])
    assert (test[1].id, test[1].label) == ("cifar100/test/00001", "clock")
    assert cifar100(tmp_path, level="coarse")[0].classes == ("alive", "made")
    check_source(lambda: ReplaySource(train, disjoint(train, 3), 2, test))


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"data": Evil()}, protocol=protocol))
    with pytest.raises(SourceError, match="not admitted"):
        cifar100(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
        b"cnumpy.testing._private.utils\nrunstring\n(S'1'\ntR.",
    ],
)
def test_other_globals_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_bytes(attack)
    with pytest.raises(SourceError, match="admitted"):
        read_pickle(tmp_path / "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (tmp_path / "p").write_bytes(pickle.dumps({b"a": array, b"b": [1, 2]}, protocol=protocol))
    read = read_pickle(tmp_path / "p")
    assert np.array_equal(read[b"a"], array)


@pytest.mark.parametrize("content", [b"", b"text, no pickle", pickle.dumps({b"data": b""})[:-3]])
def test_damaged_files_are_said_to_be(tmp_path: Path, content: bytes) -> None:
    tiny(tmp_path)
    (tmp_path / "cifar-100-python" / "test").write_bytes(content)
    with pytest.raises(SourceError, match="not a pickle of plain arrays"):
        cifar100(tmp_path)


def test_missing_files_and_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cifar-100-python") as caught:
        cifar100(tmp_path / "absent")
    assert "streamcl fetch cifar100" in str(caught.value.hint)
    tiny(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({b"fine_labels": []}))
    with pytest.raises(SourceError, match="no 'data'"):
        cifar100(tmp_path)


def test_data_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path)
    buffer = io.BytesIO()
    pickle.dump({b"data": np.zeros((2, 10), np.uint8), b"fine_labels": [0, 1]}, buffer, protocol=2)
    (tmp_path / "cifar-100-python" / "train").write_bytes(buffer.getvalue())
    with pytest.raises(SourceError, match=r"expected uint8 \[2, 3072\]"):
        cifar100(tmp_path)


@pytest.mark.data
def test_real_photographs_written_out_are_read_back(tmp_path: Path) -> None:
    import json

    pack = dev_pack("cifar100_dev")
    meta = json.loads(str(pack["meta"]))
    for code, side in enumerate(("train", "test")):
        where = np.flatnonzero(pack["split"] == code)[:500]
        fine = pack["y"][where].tolist()
        write_cifar100_side(tmp_path, side, pack["x"][where], fine, [meta["coarse"][y] for y in fine])
    write_cifar100_meta(tmp_path, meta["classes"], [str(name) for name in meta["coarse_names"]])
    train, _ = cifar100(tmp_path)
    where = np.flatnonzero(pack["split"] == 0)[:500]
    for index in (0, 250, 499):
        assert np.array_equal(train[index].image, pack["x"][where[index]])
        assert train[index].label == meta["classes"][pack["y"][where[index]]]


def test_a_pickle_written_by_python_2_is_read(tmp_path: Path) -> None:
    """The published files are such: protocol 2 with byte strings as opcodes of their own."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\x02\xfd\xfe\xfftb"
    )
    (tmp_path / "train").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x0bfine_labels]K\x07au.")
    read = read_pickle(tmp_path / "train")
    assert read[b"fine_labels"] == [7]
    assert read[b"data"].tolist() == [[0, 1, 2], [253, 254, 255]]
