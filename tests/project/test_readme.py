"""What the README shows runs as it stands: its Python, its YAML, and the names of its commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from dataset_trees import data_root
from pictures import TINY_VIT
from streams_data import write_picture

from streamcl import open_run
from streamcl.cli import cli
from streamcl.config.load import dump_config, load_config
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.registry import DETECTORS, FORGETTING, LEARNERS
from streams.user.source import IterableSource

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TINY = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
SMALLER = (
    f"backbone={json.dumps(TINY)}",
    "precision=32-true",
    "batch=4",
    "max_samples=8",
    "evaluate.max_per_part=1",
)
DOWNLOADED = re.compile(r'^vit = \{[^}]*"fetch:vit-s-focus"[^}]*\}', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def file_of(block: str) -> str | None:
    """The file that a block is, said by its first line: "# my_stream.py"."""
    named = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", block)
    return named[1] if named else None


README = ROOT / "README.md"
CUSTOM = ROOT / "docs" / "custom_sources.md"
TESTING = ROOT / "docs" / "testing.md"
FORGETTING_PAGE = ROOT / "docs" / "forgetting.md"
FILES = {
    name: block
    for page in (README, CUSTOM)
    for language in ("python", "yaml")
    for block in blocks(page, language)
    if (name := file_of(block))
}
SCRIPTS = [block for block in blocks(README, "python") if file_of(block) is None]
CONFIGS = [name for name in FILES if name.endswith(".yaml")]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the README was followed: its files, an inbox with pictures, the data sets."""
    for name, block in FILES.items():
        (tmp_path / name).write_text(block, encoding="utf-8")
    for number in range(12):
        write_picture(tmp_path / "inbox" / f"{('gear', 'bolt')[number % 2]}_{number:04d}.png", number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def make_tiny(name: str) -> None:
    """Leave the file as it is but for the backbone and the number of samples."""
    config = load_config(name, SMALLER)
    Path(name).write_text(dump_config(config), encoding="utf-8")


def test_the_readme_has_what_these_tests_run() -> None:
    names = ("my_stream", "my_datasets", "my_source")
    pairs = {f"{name}.{ending}" for name in names for ending in ("py", "yaml")}
    assert set(FILES) == pairs | {"my_camera.py", "cifar.yaml"}
    assert (len(SCRIPTS), len(blocks(TESTING, "python"))) == (3, 6)
    assert len(FILES["my_stream.py"].splitlines()) <= 15


@pytest.mark.parametrize("name", CONFIGS)
def test_each_yaml_file_runs(name: str, newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = newcomer / "data"
    data.mkdir()
    monkeypatch.setenv("STREAMCL_DATA", str(data_root(data)))
    assert load_config(name).backbone.weights == "fetch:vit-s-focus"
    make_tiny(name)
    with open_run(name) as run:
        labels = [prediction.label for prediction in run]
        summary = run.finish()
    assert (len(labels), summary["steps"], summary["quarantined"]) == (8, 2, 0)
    assert run.source.replayable == (name != "my_datasets.yaml")
    if name == "my_stream.yaml":
        assert set(labels) == {"gear", "bolt"}
    if name == "my_source.yaml":
        assert [part.name for part in run.source.info.holdout] == ["dark", "light"]


def test_class_names_of_the_data_set_are_used(newcomer: Path) -> None:
    (newcomer / "parts.yaml").write_text("source: {class: 'my_datasets:parts'}\n")
    make_tiny("parts.yaml")
    with open_run("parts.yaml") as run:
        assert {prediction.label for prediction in run} == {"bolt", "nut"}
        assert run.source.replayable


def test_the_python_runs(newcomer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny("my_stream.yaml")
    for script in SCRIPTS:
        tiny = DOWNLOADED.sub(f"vit = {TINY!r}", script)
        assert "fetch:" not in tiny
        exec(compile(tiny, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "right before learning" in printed
    assert "'gear'" in printed
    assert "Accuracy:" in printed


def test_the_camera_gives_frames(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", FakeCV2(3))
    source = IterableSource.of("my_camera:frames", {"index": 2})
    (batch,) = source
    assert {(sample.label, sample.domain, tuple(sample.image[0, 0])) for sample in batch.samples} == {
        (None, "camera 2", (3, 2, 1))
    }


class FakeCV2(ModuleType):
    """As much of OpenCV as the example uses: `count` frames in BGR, then none."""

    def __init__(self, count: int) -> None:
        super().__init__("cv2")
        self.left = count

    def VideoCapture(self, index: int) -> FakeCV2:
        return self

    def read(self) -> tuple[bool, object]:
        self.left -= 1
        return self.left >= 0, np.full((6, 8, 3), (1, 2, 3), np.uint8)

    def release(self) -> None:
        pass


PARTS = ["kills", "disk", "source", "detector", "sink", "learner"]


@pytest.mark.parametrize("script", blocks(TESTING, "python"), ids=PARTS)
def test_the_fault_tools_work_as_shown(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_without_a_file_name_is_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        if file_of(block) is None and any(not line.startswith("#") for line in block.splitlines()):
            (tmp_path / "shown.yaml").write_text(block, encoding="utf-8")
            load_config(tmp_path / "shown.yaml")


def test_every_field_of_the_run_directory_is_explained(newcomer: Path) -> None:
    page = (ROOT / "docs" / "run_directory.md").read_text(encoding="utf-8")
    make_tiny("my_source.yaml")
    with open_run("my_source.yaml") as run:
        list(run)
        summary = run.finish()
    logs = (path.read_text().splitlines() for path in Path("runs/my_source").glob("*.jsonl"))
    fields = {field for lines in logs for line in lines for field in json.loads(line)}
    fields |= set(summary) | {
        field for block in ("prequential", "holdout", "shifts") for field in summary[block]
    }
    unexplained = {field for field in fields if not re.search(rf"[`.]{field}\b", page)}
    assert not unexplained
    loop = "".join(path.read_text() for path in (ROOT / "streamcl" / "processor").glob("*.py"))
    kinds = re.findall(r'\.log\(\s*"(\w+)"', loop)
    assert {kind for kind in kinds if f"| `{kind}` |" not in page} == set()
    assert {path.name for path in Path("runs/my_source").iterdir() if f"{path.name}" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:`|^)streamcl ([a-z]+)", text, re.MULTILINE)):
        assert name in cli.commands, f"streamcl {name}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "streamcl|streams|tests|benchmarks|configs|docs"
    named = re.findall(rf"(?:{folders})/[\w./-]*\w\.(?:py|yaml|md|json)\b|\w+/test_\w+\.py", text)
    assert [
        name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "tests"))
    ] == []


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next one of any level."""
    return re.split(r"^#+ ", page.read_text().split(f"## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("page", "title", "names"),
    [
        (README, "Learners", LEARNERS.built_in),
        (README, "Shift detectors", DETECTORS.built_in),
        (FORGETTING_PAGE, "Methods", FORGETTING.built_in),
        (FORGETTING_PAGE, "Reading a receipt", [*Receipt.model_fields, "sha256"]),
    ],
    ids=["learners", "detectors", "methods", "receipt"],
)
def test_tables_have_every_name_and_no_other(page: Path, title: str, names: Iterable[str]) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", section(page, title), re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert shown - {"learner", "shift"} == set(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_each_option_of_the_command_line_is_one() -> None:
    text = README.read_text(encoding="utf-8")
    parameters = [p for command in cli.commands.values() for p in command.get_params(click.Context(command))]
    known = {option for parameter in parameters for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known | {"--debug"}


def test_every_command_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `streamcl ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert table == set(cli.commands)


@pytest.mark.parametrize(
    "page", [ROOT / "SECURITY.md", ROOT / "docs" / "durability.md"], ids=lambda p: p.name
)
def test_the_tests_that_a_page_names_exist(page):
    named = re.findall(r"`([\w/]+/test_\w+\.py)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_exist(page):
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [name for name in linked if not (page.parent / name).exists()] == []
