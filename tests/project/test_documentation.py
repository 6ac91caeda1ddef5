"""What the pages show runs as it stands: Python, YAML, and the names of commands, options and files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from dataset_trees import data_root
from documentation import DOCS, PAGES, README, ROOT, TINY, blocks, blocks_of, section, tiny
from streams_data import write_picture

from streamcl import open_run
from streamcl.cli import cli
from streamcl.config.load import dump_config, load_config
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.registry import DETECTORS, FORGETTING, LEARNERS
from streams.user.source import IterableSource

SMALLER = (
    f"backbone={json.dumps(TINY)}",
    "precision=32-true",
    "batch=4",
    "max_samples=8",
    "evaluate.max_per_part=1",
)
CUSTOM, TESTING, PYTHON = (DOCS / f"{name}.md" for name in ("custom_sources", "testing", "python"))
FILES = {
    block.file: block.text
    for page in (CUSTOM, DOCS / "datasets.md")
    for block in blocks_of(page)
    if block.file
}
SCRIPTS = [*blocks(README, "python"), *blocks(PYTHON, "python")]
LEARNERS_PAGE, COMMAND_LINE, FORGETTING_PAGE = (
    DOCS / f"{name}.md" for name in ("learners", "cli", "forgetting")
)
CONFIGS = [name for name in FILES if name.endswith(".yaml")]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the pages were followed: their files, an inbox with pictures, the data sets."""
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


def test_the_pages_have_what_these_tests_run() -> None:
    names = ("my_stream", "my_datasets", "my_source")
    pairs = {f"{name}.{ending}" for name in names for ending in ("py", "yaml")}
    assert set(FILES) == pairs | {
        "my_camera.py",
        "cifar.yaml",
        "listed.yaml",
        "boxes.yaml",
        "pets.yaml",
        "digits.yaml",
    }
    assert (len(SCRIPTS), len(blocks(TESTING, "python"))) == (6, 6)
    assert len(FILES["my_stream.py"].splitlines()) <= 15


@pytest.mark.long
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
        shown = tiny(script)
        assert "fetch:" not in shown
        exec(compile(shown, "a page", "exec"), {"__name__": "page"})
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
    for block in blocks_of(page):
        if block.language == "yaml" and block.file is None and block.commands:
            (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
            load_config(tmp_path / "shown.yaml")


def test_every_field_of_the_run_directory_is_explained(newcomer: Path) -> None:
    page = (DOCS / "run_directory.md").read_text(encoding="utf-8")
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
    for name in set(re.findall(r"`streamcl ([a-z]+)", text)):
        assert name in cli.commands, f"streamcl {name}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "streamcl|streams|tests|benchmarks|configs|docs"
    named = re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]*\w\.(?:py|yaml|md|json)\b|\w+/test_\w+\.py", text)
    assert [
        name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "tests"))
    ] == []


@pytest.mark.parametrize(
    ("page", "title", "names"),
    [
        (LEARNERS_PAGE, "Learners", LEARNERS.built_in),
        (LEARNERS_PAGE, "Shift detectors", DETECTORS.built_in),
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


@pytest.mark.parametrize("page", [README, COMMAND_LINE], ids=lambda page: page.name)
def test_each_option_of_the_command_line_is_one(page: Path) -> None:
    parameters = [p for command in cli.commands.values() for p in command.get_params(click.Context(command))]
    known = {option for parameter in parameters for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8"))) <= known | {"--debug", "--help"}


def test_every_command_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `streamcl ([a-z]+)", COMMAND_LINE.read_text(encoding="utf-8"), re.MULTILINE))
    assert table == set(cli.commands)


SHOWN = [
    (page.name, command)
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "bash"
    for command in block.commands
    if command.startswith("streamcl ")
]


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda each: each[:50])
def test_each_command_that_is_shown_can_be_parsed(page: str, command: str) -> None:
    """Names of files are those of the reader; everything else must be as the command takes it."""
    called: click.Command = cli
    rest = shlex.split(command.partition(" > ")[0])[1:]
    context = click.Context(cli)
    while isinstance(called, click.Group):
        _, called, rest = called.resolve_command(context, rest)
        assert called is not None
    try:
        called.make_context("streamcl", rest, parent=context)
    except click.BadParameter as error:
        assert "does not exist" in str(error)  # noqa: PT017


@pytest.mark.parametrize("page", [ROOT / "SECURITY.md", DOCS / "durability.md"], ids=lambda p: p.name)
def test_the_tests_that_a_page_names_exist(page):
    named = re.findall(r"`([\w/]+/test_\w+\.py)`", page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_exist(page):
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [name for name in linked if not (page.parent / name).exists()] == []
