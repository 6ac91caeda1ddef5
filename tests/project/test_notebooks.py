"""The notebooks of the documentation are stored with the outputs of a run, and run to their ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documentation import DOCS, ROOT, tiny, weights_are_there

from streamcl.errors import SourceError
from streams.datasets.digits import DIGIT_FILES
from streams.download.pip_assets import fetch_members

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored_and_hold_nothing_of_the_machine(path: Path) -> None:
    cells = code_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = json.dumps([output.get("text", "") for output in outputs])
    assert "/tmp" not in printed
    assert path.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path: Path, tmp_path: Path) -> None:
    if "demo_digits" in path.read_text(encoding="utf-8"):
        try:
            fetch_members(DIGIT_FILES)
        except SourceError as error:
            pytest.skip(f"the digits cannot be had: {error}")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and not weights_are_there():
            cell["source"] = tiny("".join(cell["source"]))
    (tmp_path / "shown.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    script = ROOT / "docs" / "run_notebooks.py"
    done = subprocess.run(
        [sys.executable, str(script), "shown.ipynb", "executed.ipynb"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    executed = code_of(tmp_path / "executed.ipynb")
    assert len(executed) == len(code_of(path))
