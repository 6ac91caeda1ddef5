"""What a request would come to is said beforehand, and nothing changes; then it comes to that."""

from __future__ import annotations

import hashlib
import json

import pytest
from streams_data import write_picture
from tiny_runs import call, configuration

from streamcl import open_run
from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.runs.forecast import forecast_request


def hashes(folder):
    """The content of every file but SQLite's indexes of its journals, which readers write too."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("-shm")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.stat().st_size}


@pytest.fixture(scope="module", params=["ridge", "online_lora"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with open_run(configuration(folder, request.param)) as opened:
        list(opened)
    return folder / "run"


@pytest.mark.long
@pytest.mark.parametrize("terms", [{"label": "4"}, {"offsets": (0, 20)}, {"subject": "nobody"}])
def test_a_request_comes_to_what_was_forecast(run, terms):
    before = hashes(run)
    found = forecast_request(run, ForgetRequest(**terms))
    assert hashes(run) == before
    assert found.seconds["logs"] >= 0.0
    assert {"model", "metrics", "source data"} <= {place.name for place in found.remaining}
    with open_run(run / "config.yaml", reopen=False) as opened:
        name = opened.forget(**terms)
        opened.processor.forget()
    receipt = json.loads((run / "receipts" / f"{name}.json").read_text())
    assert (found.method, found.guarantee, found.reason) == tuple(
        receipt[field] for field in ("method", "guarantee", "method_reason")
    )
    assert (found.learned, found.passed) == (receipt["scope"]["learned"], receipt["scope"]["passed"])


def test_what_every_method_would_refuse_is_refused_by_the_forecast(run):
    with pytest.raises(ForgettingError, match="no method can erase this"):
        forecast_request(run, ForgetRequest(label="unheard of"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with open_run(configuration(folder, "online_lora")) as opened:
        list(opened)
    return folder / "run"


@pytest.mark.parametrize("method", ["gs_lora", "fast_ntk"])
def test_the_time_of_a_method_that_trains_is_measured_on_a_copy(trained, method):
    before = hashes(trained)
    found = forecast_request(trained, ForgetRequest(label="4", method=method))
    assert hashes(trained) == before
    assert found.method == method
    measured, failed = (
        f"{method}, tried on a copy" in found.seconds,
        "tried on a copy" in (found.unknown or ""),
    )
    assert measured != failed
    assert "model" in {place.name for place in found.remaining}


def test_the_command_prints_it_and_submits_nothing(run):
    before = hashes(run)
    code, text = call("forget", run, "--offsets", "30:40", "--plan")
    assert code == 0, text
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert set(lines) >= {"method", "guarantee", "reaches", "expected", "remains", "not reachable"}
    assert hashes(run) == before


def test_what_a_live_source_has_delivered_is_retrieved_for_the_forecast(tmp_path):
    for number in range(8):
        write_picture(tmp_path / "inbox" / "ab"[number % 2] / f"{number}.png", number)
    source = {"name": "folder", "args": {"root": str(tmp_path / "inbox")}}
    with open_run(configuration(tmp_path, source=source, max_samples=8, batch=4)) as opened:
        list(opened)
    before = hashes(tmp_path / "run")
    found = forecast_request(tmp_path / "run", ForgetRequest(label="a"))
    assert (found.method, found.learned, found.unknown) == ("closed_form", 4, None)
    assert found.seconds["samples derived again"] >= 0.0
    assert hashes(tmp_path / "run") == before
