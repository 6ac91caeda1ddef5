"""The source distribution and the wheel: what is in them, and that the wheel works where nothing else is."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import ROOT, TINY
from streams_data import write_picture

import streamcl

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
REMOVED = {"asynchat", "asyncore", "distutils", "imp", "smtpd"} | {  # by Python 3.12, then by 3.13
    *("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "mailcap", "msilib", "nis", "nntplib"),
    *("ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib", "lib2to3"),
}
CAMERA = {
    "source": {"name": "folder", "args": {"root": "inbox"}},
    "run_dir": "run",
    "backbone": TINY,
    "precision": "32-true",
    "max_samples": 24,
}


def tracked(*folders: str) -> list[str]:
    """Return the files under version control, all or those below the folders."""
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def build(kind: str, project: Path, target: Path) -> Path:
    """Build a "sdist" or a "wheel" of a project, by the packages that are installed here."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of the files under version control."""
    project = tmp_path_factory.mktemp("project")
    for name in tracked():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes((ROOT / name).read_bytes())
    return build("sdist", project, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution alone makes."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (project,) = folder.iterdir()
    return build("wheel", project, tmp_path_factory.mktemp("wheel"))


def members(archive: Path) -> dict[str, bytes]:
    """Return the files of an archive by their names, those of a source distribution without its folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return {name: opened.read(name) for name in opened.namelist()}
    found = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            if (file := opened.extractfile(member)) is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    own = {name for name in members(wheel) if ".dist-info/" not in name}
    assert own == set(tracked("streamcl", "streams"))
    assert {"streamcl/py.typed", "streams/py.typed", "streamcl/serving/page/page.html"} <= own


def test_the_source_distribution_has_the_examples_and_no_tests(sdist: Path) -> None:
    found = set(members(sdist))
    assert set(tracked("streamcl", "streams", "configs")) <= found
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= found
    assert not [name for name in found if name.startswith(("tests/", "benchmarks/", ".ci/", ".github/"))]


def test_nothing_in_them_names_a_folder_of_the_machine(sdist: Path, wheel: Path) -> None:
    folders = [str(ROOT).encode(), str(Path.home()).encode() + b"/", sys.prefix.encode()]
    for archive in (sdist, wheel):
        named = [name for name, text in members(archive).items() if any(each in text for each in folders)]
        assert named == []


def test_the_metadata_says_what_is_tested(wheel: Path) -> None:
    (text,) = [each.decode() for name, each in members(wheel).items() if name.endswith("/METADATA")]
    assert f"Version: {streamcl.__version__}\n" in text
    assert "Requires-Python: >=3.11\n" in text
    assert "Classifier: Programming Language :: Python :: 3.11\n" in text
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"


def test_the_code_is_that_of_the_oldest_python_and_imports_nothing_that_newer_ones_lack() -> None:
    files = [name for name in tracked("streamcl", "streams", "configs") if name.endswith(".py")]
    for name in files:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"), name, feature_version=(3, 11))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {each.partition(".")[0] for each in names} & REMOVED, name


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """A folder on disk, where `tmp_path` may lie in memory: an environment with torch has gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: Path, disk_folder: Path) -> None:
    venv.create(disk_folder / "empty", with_pip=True)
    programs = disk_folder / "empty" / "bin"
    work = disk_folder / "work"
    for number in range(24):
        write_picture(work / "inbox" / ("bolt", "nut")[number % 2] / f"{number}.png", number)
    (work / "camera.yaml").write_text(json.dumps(CAMERA))
    environment = {name: each for name, each in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"STREAMCL_KEYS": str(work / "keys"), "STREAMCL_CACHE": str(work / "cache")}

    def call(program: str, *arguments: str) -> str:
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=1800
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    call("python", "-m", "pip", "install", "--quiet", "--no-compile", str(wheel))
    place = call("python", "-c", "import streamcl, streams; print(streamcl.__file__, streams.__file__)")
    assert place.count(str(disk_folder / "empty")) == 2
    assert streamcl.__version__ in call("streamcl", "--version")
    assert call("streamcl", "schema") == (ROOT / "configs" / "streamcl.schema.json").read_text(
        encoding="utf-8"
    )
    call("streamcl", "run", "camera.yaml")
    assert "bolt" in call("streamcl", "predict", "run", "inbox/bolt/0.png", "--top", "2")
    call("streamcl", "forget", "run", "--class", "nut", "--execute")
    receipts = [str(path.relative_to(work)) for path in (work / "run" / "receipts").glob("*.json")]
    assert "exact" in call("streamcl", "verify", *receipts)
    assert "nut" not in call("streamcl", "predict", "run", "inbox/bolt/0.png", "--top", "2")
    assert "<!DOCTYPE html>" in (work / "run" / "report.html").read_text(encoding="utf-8")
