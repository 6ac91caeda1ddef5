"""Runs over a spool: a generator becomes exactly once; what is forgotten leaves it, and receipts say so."""

from __future__ import annotations

import json
import random
import signal

import pytest
from fault_runs import learned, lines, start, streamcl, until, write_config
from spool_sources import CANARY, spooled_ids
from tiny_runs import configuration

from streamcl import open_run
from streamcl.errors import ConfigError
from streamcl.factory.source import build_source
from streamcl.testing import each_exactly_once

RECORDS = 60
RUN = "run"


def config(folder, records=RECORDS, **changes):
    settings = {
        "source": {
            "class": "spool_sources:Camera",
            "args": {"file": "camera", "records": records},
            "spool": {"keep": "7d"},
        },
        "batch": {"size": 8, "max_wait": None},
        "learner": "ridge",
        "checkpoint": {"every_samples": 16, "every_seconds": 1.0, "delivery": "exactly_once"},
        "shift": "none",
        "run_dir": RUN,
    }
    return write_config(folder, **(settings | changes))


def content(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def until_request(folder, number):
    """Let the camera give pictures up to this number."""
    (folder / "limit.part").write_text(str(number))
    (folder / "limit.part").rename(folder / "limit")


def predicted(folder):
    return [each["id"] for each in lines(folder / RUN, "predictions")]


def kill_while_it_learns(folder, kills, seed=0):
    """Kill the run at random calls of disk, loop and learner, so often; then let it end."""
    rng, killed = random.Random(seed), 0
    while True:
        number = rng.randint(1, 120) if killed < kills else 0
        hook = ("fault_runs:kill_at", {"note": str(folder / "note"), "number": number})
        done = streamcl("run", "stream.yaml", "--quiet", folder=folder, hooks=(hook,))
        assert done.code in (0, -signal.SIGKILL), done.err
        if done.code == 0:
            return killed
        killed += 1


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_generator_is_exactly_once_from_the_spool_on_however_often_it_is_killed(tmp_path, kills):
    records = RECORDS if kills == 6 else 3000
    config(tmp_path, records)
    assert kill_while_it_learns(tmp_path, kills) >= min(kills, 3)
    ids = spooled_ids(tmp_path / RUN / "spool")
    assert len(ids) > records / 2
    each_exactly_once(predicted(tmp_path), ids)
    (tmp_path / "ids").write_text(json.dumps(ids))
    source = {"class": "spool_sources:again", "args": {"file": "ids"}}
    config(tmp_path, source=source, run_dir="undisturbed", batch=8)
    done = streamcl("run", "stream.yaml", "--quiet", folder=tmp_path)
    assert done.code == 0, done.err
    assert learned(tmp_path / RUN) == learned(tmp_path / "undisturbed")


def test_a_run_says_from_where_on_it_is_exactly_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"class": "spool_sources:Camera", "args": {"file": "camera", "records": 1}}
    once = {"checkpoint": {"delivery": "exactly_once"}}
    made = configuration(tmp_path, **once, source={**source, "spool": {}})
    guarantee = build_source(made, folder=tmp_path).guarantee
    assert (guarantee.kind, "from the spool on" in guarantee.reason) == ("exactly_once", True)
    with pytest.raises(ConfigError, match="delivers at most once"):
        open_run(configuration(tmp_path, **once, source=source))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": None}, "emptied behind checkpoints"),
        ({"checkpoint": {"every_seconds": None}}, "may be full before"),
        ({"source": {"name": "demo_digits", "spool": {}}}, "only for live sources"),
        ({"scenario": {"name": "iid"}}, "only for live sources"),
    ],
)
def test_a_spool_that_is_never_emptied_or_not_needed_is_refused(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    source = {"class": "fault_sources:Pictures", "spool": {}}
    with pytest.raises(ConfigError) as caught:
        build_source(configuration(tmp_path, **({"source": source} | changes)), folder=tmp_path)
    assert message in "\n".join([str(caught.value), *caught.value.problems])


def test_a_run_cannot_gain_or_lose_its_spool(tmp_path):
    config(tmp_path, 20)
    assert streamcl("run", "stream.yaml", "--quiet", folder=tmp_path).code == 0
    done = streamcl("run", "stream.yaml", "--quiet", "--set", "source.spool=null", folder=tmp_path)
    assert done.code == 2
    assert "source.spool" in done.err


# -- forgetting --------------------------------------------------------------------------------------------


def of_subject(ids):
    return [each for each in ids if each.startswith("p1-")]


def check_forgotten(folder):
    assert CANARY not in content(folder / RUN)
    assert b"p1-0000" not in content(folder / RUN)
    (path,) = (folder / RUN / "receipts").glob("*.json")
    receipt = json.loads(path.read_text())
    assert (receipt["outcome"], receipt["guarantee"]) == ("done", "exact")
    (spool,) = [each for each in receipt["locations"] if each["name"] == "spool"]
    assert spool["status"] == "erased"
    assert "7 days" in spool["explanation"]
    verified = streamcl("verify", path.relative_to(folder), folder=folder)
    assert verified.code == 0, verified.err


@pytest.mark.long
def test_an_erasure_of_a_run_that_has_ended_reaches_its_spool(tmp_path):
    config(tmp_path)
    assert streamcl("run", "stream.yaml", "--quiet", folder=tmp_path).code == 0
    assert content(tmp_path / RUN).count(CANARY) == RECORDS // 3
    done = streamcl("forget", RUN, "--subject", "p1", "--execute", folder=tmp_path)
    assert done.code == 0, done.err
    check_forgotten(tmp_path)


@pytest.mark.long
@pytest.mark.faults
def test_an_erasure_while_records_wait_reaches_those_too_and_the_run_goes_on(tmp_path):
    config(tmp_path, batch={"size": 8, "max_wait": None}, max_samples=24)
    assert streamcl("run", "stream.yaml", "--quiet", folder=tmp_path).code == 0
    done = streamcl("forget", RUN, "--subject", "p1", "--execute", folder=tmp_path)
    assert done.code == 0, done.err
    check_forgotten(tmp_path)
    config(tmp_path, batch={"size": 8, "max_wait": None})
    done = streamcl("run", "stream.yaml", "--quiet", folder=tmp_path)
    assert done.code == 0, done.err
    ids = [each["id"] for each in lines(tmp_path / RUN, "predictions") if "id" in each]
    assert not of_subject(ids)
    assert not lines(tmp_path / RUN, "quarantine")
    offsets = [each["offset"] for each in lines(tmp_path / RUN, "predictions")]
    assert offsets[-1] == max(k for k in range(RECORDS) if k % 3 != 1)


@pytest.mark.faults
def test_what_a_running_camera_brings_again_after_it_was_forgotten_leaves_the_spool_too(tmp_path):
    config(tmp_path, batch={"size": 8, "max_wait": "200ms"}, flush="100ms")
    until_request(tmp_path, 20)
    run = start("run", "stream.yaml", "--quiet", folder=tmp_path)
    until(lambda: len(predicted(tmp_path)) >= 16, process=run)
    done = streamcl("forget", RUN, "--subject", "p1", "--wait", "60", folder=tmp_path)
    assert done.code == 0, done.err
    until_request(tmp_path, RECORDS)
    assert run.wait().code == 0
    assert len(lines(tmp_path / RUN, "predictions")) >= RECORDS * 2 / 3
    check_forgotten(tmp_path)
