from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from streamcl.errors import SourceError
from streams.datasets.npz import npz
from streams.download.archives import extract


def tar_with(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            member.size = 2 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"hi") if member.isfile() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_archives_of_every_kind_are_unpacked_whole(tmp_path: Path) -> None:
    tar_with(tmp_path / "a.tgz", member("data/x.txt"), mode="w:gz")
    tar_with(tmp_path / "b.tar", member("data/x.txt"))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("data/x.txt", "hi")
    for name in ("a.tgz", "b.tar", "c.zip"):
        folder = extract(tmp_path / name, tmp_path / f"out of {name}")
        assert (folder / "data" / "x.txt").read_bytes() == b"hi"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.txt"),
        member("data/../../outside.txt"),
        member("/tmp/outside.txt"),
        member("..\\outside.txt"),
        member("link", tarfile.SYMTYPE, "/etc"),
        member("hard", tarfile.LNKTYPE, "../outside.txt"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
)
def test_tar_members_that_reach_out_are_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    archive = tar_with(tmp_path / "bad.tar", member("good.txt"), bad)
    with pytest.raises(SourceError, match="nothing was unpacked"):
        extract(archive, tmp_path / "into" / "here")
    assert everything(tmp_path / "into") == ["here.partial"]
    assert not (tmp_path / "outside.txt").exists()


def test_zip_members_that_reach_out_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for number, name in enumerate(("../outside.txt", "/abs.txt", link)):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "hi")
        with pytest.raises(SourceError, match="nothing was unpacked"):
            extract(path, tmp_path / "here")


@pytest.mark.parametrize("kind", ["zip", "tgz", "npz"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, kind: str) -> None:
    path, zeros = tmp_path / f"bomb.{kind}", bytes(80 << 20)
    if kind == "tgz":
        info = tarfile.TarInfo("zeros")
        info.size = len(zeros)
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(info, io.BytesIO(zeros))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("x.npy", zeros)
    with pytest.raises(SourceError, match="bytes, more than the"):
        _ = npz(path) if kind == "npz" else extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_archive_leaves_no_folder(tmp_path: Path) -> None:
    whole = tar_with(tmp_path / "a.tgz", *(member(f"{n}.txt") for n in range(50)), mode="w:gz")
    (tmp_path / "cut.tgz").write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(SourceError, match="cannot be unpacked"):
        extract(tmp_path / "cut.tgz", tmp_path / "here")
    assert not (tmp_path / "here").exists()
    extract(whole, tmp_path / "here")  # what the failed attempt left does not stand in the way
    assert len(everything(tmp_path / "here")) == 50
