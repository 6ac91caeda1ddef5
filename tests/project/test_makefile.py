"""The make targets work in paths with spaces and ask for a network only where pyproject.toml has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="there is no make")

PYTHON = """#!/bin/sh
echo "python $@" >> "{log}"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the Makefile in a folder with a space, beside a stand-in for a virtual environment."""
    folder = tmp_path / "a project"
    (folder / "docs").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    os.utime(folder / "pyproject.toml", (1, 1))
    binaries = tmp_path / "an environment" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "streamcl", "ruff", "mypy", "mkdocs"):
        tool = binaries / name
        tool.write_text(PYTHON.format(log=folder / "log").replace("python $@", f"{name} $@"))
        tool.chmod(0o755)
    return folder


def make(project: Path, *targets: str) -> list[str]:
    """Run make without a home; the calls of Python and of the tools that it led to."""
    (project / "log").write_text("")
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "MAKEFLAGS"}}
    command = [str(MAKE), *targets, f"VENV={project.parent / 'an environment'}"]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return (project / "log").read_text().splitlines()


def installs(calls: list[str]) -> list[str]:
    return [call.rpartition(" ")[2] for call in calls if "pip install" in call]


def test_the_demo_installs_once_and_runs_each_time(project: Path) -> None:
    first = make(project, "demo")
    assert installs(first) == [".[onnx]"]
    shown = [
        "streamcl run configs/demo.yaml --fresh",
        "streamcl forget runs/demo --class 7 --execute",
        "streamcl verify runs/demo",
        "streamcl report runs/demo",
    ]
    assert first[-4:] == shown
    assert make(project, "demo") == shown
    assert make(project, "demo", "CONFIG=mine.yaml") == ["streamcl run mine.yaml --fresh"]


def test_the_demo_of_live_sources_brings_the_client_of_redis(project: Path) -> None:
    calls = make(project, "demo-live")
    assert installs(calls) == [".[onnx]", ".[redis]"]
    assert calls[-1] == "python configs/live_demo.py"
    assert make(project, "demo-live") == ["python configs/live_demo.py"]


def test_a_changed_pyproject_is_installed_again(project: Path) -> None:
    make(project, "install")
    os.utime(project / "pyproject.toml", (4e9, 4e9))
    assert installs(make(project, "install")) == [".[onnx]"]


def test_tests_and_lint_bring_their_own_packages_once(project: Path) -> None:
    assert installs(make(project, "test", "lint", "types")) == [".[onnx]", ".[test]", ".[lint]"]
    again = make(project, "test", "lint", "types")
    assert again == [
        "python -m pytest -m not slow and not long -n auto --dist loadfile",
        "ruff check .",
        "ruff format --check .",
        "mypy ",
    ]


def test_the_site_is_strict_about_its_links(project: Path) -> None:
    assert installs(calls := make(project, "docs")) == [".[onnx]", ".[docs]"]
    assert calls[-1] == "mkdocs build --strict"


def test_a_failed_installation_is_tried_again(project: Path) -> None:
    python = project.parent / "an environment" / "bin" / "python"
    good = python.read_text()
    python.write_text(good + "exit 1\n")
    with pytest.raises(AssertionError):
        make(project, "install")
    python.write_text(good)
    assert installs(make(project, "install")) == [".[onnx]"]
