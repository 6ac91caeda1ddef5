"""A run in a `with` block ends by itself: it commits what has passed, and at the end it writes the report."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_runs import configuration

from streamcl.runs.open import open_run


def test_a_run_that_came_to_its_end_has_summary_and_report(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        list(run)
    assert json.loads((run.folder / "summary.json").read_text())["finished"] is True
    assert (run.folder / "report.html").exists()
    with open_run(configuration(tmp_path)) as run:
        assert run.processor.progress.finished
        written = (run.folder / "summary.json").stat().st_mtime_ns
    assert (run.folder / "summary.json").stat().st_mtime_ns == written, "nothing new, so nothing is written"


def test_a_run_that_is_left_early_goes_on_from_there(tmp_path):
    with open_run(configuration(tmp_path, checkpoint={"every_samples": 10**6, "every_seconds": None})) as run:
        for prediction in run:
            if prediction.offset == 40:
                break
        offset = run.processor.progress.offset
    assert offset == 48
    assert not (run.folder / "summary.json").exists()
    with open_run(run.config) as run:
        assert run.processor.progress.offset == offset
        assert [prediction.offset for prediction in run] == list(range(offset, 160))


def fail_at(run, offset):
    for prediction in run:
        if prediction.offset == offset:
            raise ZeroDivisionError


def test_after_an_exception_nothing_is_committed_as_after_a_crash(tmp_path):
    config = configuration(tmp_path, checkpoint={"every_samples": 10**6, "every_seconds": None})
    with pytest.raises(ZeroDivisionError), open_run(config) as run:
        fail_at(run, 40)
    with open_run(config) as run:
        assert run.processor.progress.offset == 0


def test_an_erasure_in_a_finished_run_makes_summary_and_report_anew(tmp_path):
    with open_run(configuration(tmp_path)) as run:
        list(run)
    with open_run(configuration(tmp_path)) as run:
        run.forget(label="4")
        run.processor.forget()
        assert not (run.folder / "report.html").exists()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert "4" not in summary["class_names"]


@pytest.mark.long
def test_the_library_of_the_reports_charts_is_loaded_by_the_report_alone():
    """It takes 30 MiB and half a second, and a stream may never end."""
    script = "import sys, streamcl.runs.open\nassert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
