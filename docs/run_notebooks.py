"""Executes the notebooks of the documentation and stores their outputs: `make notebooks`.

Without arguments every notebook is executed where it lies. With two, one notebook is read and its executed
form is written elsewhere: python docs/run_notebooks.py docs/notebooks/own_images.ipynb /tmp/executed.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"


def execute(source: Path, target: Path) -> None:
    """Execute a notebook in a kernel of its own and write it with its outputs; a cell that fails ends it."""
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=1800, record_timing=False, kernel_name="python3").execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    nbformat.write(notebook, target)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        execute(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            execute(path, path)
