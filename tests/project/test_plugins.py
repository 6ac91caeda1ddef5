"""A package with one part of each kind, from CONTRIBUTING.md: built, installed, checked and run by YAML."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:python|toml|yaml)\n# ([\w./]+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the page's files, with the package built from them and installed beside."""
    folder = tmp_path_factory.mktemp("parts")
    for name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "my_parts" / "__init__.py").write_text('"""One part of each kind."""\n')
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", "site", "."], cwd=folder, check=True, capture_output=True)
    return folder


def call(package, *arguments):
    """Run Python in a folder that has no source of the package, only what was installed."""
    elsewhere = package / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path = os.pathsep.join([str(package / "site"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=elsewhere,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_installed_parts_of_all_five_kinds_run_by_yaml(package):
    done = call(package, "-m", "streamcl", "run", package / "stripes.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    run = package / "elsewhere" / "runs" / "stripes"
    (receipt,) = (json.loads(path.read_text()) for path in (run / "receipts").glob("*.json"))
    assert (receipt["outcome"], receipt["method"]) == ("done", "drop_name")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["samples"], summary["learner"]) == (96, "gaussian")
    assert len((run / "steps.csv").read_text().splitlines()) == 12
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert "shift" in kinds


LIST_ALL = """
import sys
from streamcl.cli import cli
for kind in sys.argv[1:]:
    print("==", kind)
    cli.main(["list", kind], standalone_mode=False)
"""


@pytest.mark.long
def test_installed_parts_are_listed(package):
    names = {"sources": "stripes", "detectors": "median_rise", "sinks": "csv", "learners": "gaussian"}
    names["forgetting"] = "drop_name"
    done = call(package, "-c", LIST_ALL, *names)
    listed = {kind: text.split() for kind, text in re.findall(r"== (\w+)\n([^=]*)", done.stdout)}
    assert not {kind: name for kind, name in names.items() if name not in listed.get(kind, ())}, done.stderr


@pytest.mark.long
def test_the_shipped_checks_pass(package):
    done = call(package, package / "check_parts.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_learner_beside_the_yaml_is_resumed_and_forgets_a_class_exactly(package, monkeypatch, tmp_path):
    monkeypatch.chdir(package)
    monkeypatch.syspath_prepend(str(package))
    config = {
        "source": {"class": "my_parts.source:stripes_records", "args": {"count": 48}},
        "batch": 8,
        "backbone": {
            "name": "vit_tiny_patch16_224",
            "weights": "none",
            "image_size": 32,
            "args": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
        },
        "learner": {"class": "my_parts.learner:GaussianLearner", "args": {"shrinkage": 0.2}},
        "precision": "32-true",
    }

    def state(folder, *limits):
        for limit in limits:
            with open_run({**config, "run_dir": str(tmp_path / folder), "max_samples": limit}) as run:
                list(run)
                if limit is None:
                    run.finish()
        return run

    whole, resumed = state("whole", None), state("resumed", 24, None)
    assert state_hash(whole.learner.state_dict()) == state_hash(resumed.learner.state_dict())
    with open_run({**config, "run_dir": str(tmp_path / "whole")}) as run:
        run.forget(label="wide", guarantee="exact")
        run.processor.forget()
        assert run.learner.classes == ("fine",)
    (path,) = (tmp_path / "whole" / "receipts").glob("*.json")
    receipt = json.loads(path.read_text())
    assert (receipt["outcome"], receipt["guarantee"], receipt["method"]) == ("done", "exact", "closed_form")
