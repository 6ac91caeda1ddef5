"""The architecture page follows the code: its map of modules, and the paths that it names."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"

sys.path.insert(0, str(ROOT / "docs"))
from write_module_map import with_map  # noqa: E402


def test_the_map_of_modules_is_that_of_this_version():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_map(page), "run `make generated`"


def test_paths_on_the_page_exist():
    for path in re.findall(r"`((?:streamcl|streams|tests|docs)/[\w/.]+)`", PAGE.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
