"""streamcl list sources and source check: guarantees, positions and next records; nothing is touched."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from live_configs import TINY
from streams_data import picture, png

from streamcl import open_run
from streamcl.cli import cli
from streamcl.config.load import load_config
from streamcl.errors import ConfigError, SourceError
from streamcl.events import Batch
from streamcl.factory.source import build_source
from streamcl.factory.spool import INBOX
from streamcl.registry import SOURCES, import_callable
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.storage.snapshots import Snapshots

RECORDS = 12


def check(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["source", "check", str(config), "--wait", "1.5", *arguments])


def facts(result: Result) -> dict[str, str]:
    """Return the lines of the report by their names."""
    return {
        name: text.strip() for name, _, text in (line.partition(" ") for line in result.output.splitlines())
    }


def everything(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the times and contents of all files below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_config(work: Path, source: dict, **more) -> Path:
    path = work / "stream.yaml"
    path.write_text(json.dumps({"source": source, "backbone": {"name": "vit_tiny_patch16_224"}, **more}))
    return path


def run_eight(config: Path) -> None:
    """Learn the first eight records."""
    with open_run(load_config(config, TINY)) as run:
        assert len(list(run)) == 8


def put(work: Path, *numbers: int) -> None:
    for number in numbers:
        path = work / "inbox" / "cat" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        os.utime(path, (1000 + number, 1000 + number))


def test_every_source_is_listed_with_its_guarantee():
    lines = CliRunner().invoke(cli, ["list", "sources"]).output.splitlines()
    listed = {name: note.strip() for name, _, note in (line.partition(" ") for line in lines)}
    assert set(listed) >= set(SOURCES.built_in)
    kinds = ("exactly once: ", "at least once: ", "at most once: ")
    assert all(listed[name].startswith(kinds) for name in SOURCES.built_in), listed
    assert listed["camera"].startswith("at most once")
    assert listed["cifar100"] == "exactly once: it can be read again from any position"


@pytest.mark.parametrize("name", [name for name, path in SOURCES.built_in.items() if ".live." in path])
def test_every_live_source_declares_its_guarantee(name):
    assert isinstance(import_callable(SOURCES.built_in[name]).delivery, DeliveryGuarantee)


def test_a_live_source_before_and_after_its_run_and_nothing_is_touched(work):
    put(work, *range(RECORDS))
    config = write_config(work, {"name": "folder", "args": {"root": "inbox", "interval": 0.05}})
    before = everything(work)
    found = facts(check(config))
    assert everything(work) == before
    assert found["source"] == "inbox, live"
    assert found["delivery"].startswith("exactly once: ")
    assert found["position"] == "offset 0 (the beginning: there is no checkpoint)"
    assert (found["lag"], found["next"]) == ("12 records", "cat/00.png, label 'cat', 8 x 8 pixels")
    run_eight(config)
    before = everything(work)
    found = facts(check(config))
    assert everything(work) == before
    assert found["position"].startswith("offset 8 (")
    assert (found["lag"], found["next"].partition(",")[0]) == ("4 records", "cat/08.png")


def test_a_live_source_that_has_nothing_yet(work):
    (work / "inbox").mkdir()
    config = write_config(work, {"name": "folder", "args": {"root": "inbox", "interval": 0.05}})
    found = facts(check(config))
    assert (found["lag"], found["next"]) == ("0 records", "none within 1.5 s")


def test_a_bad_record_is_named(work):
    put(work, 0)
    (work / "inbox" / "cat" / "00.png").write_bytes(b"no image")
    config = write_config(work, {"name": "folder", "args": {"root": "inbox", "interval": 0.05}})
    assert facts(check(config))["next"].startswith("cat/00.png, a bad record: ")


def test_a_finite_source_before_and_after_its_run(work):
    x = np.stack([picture(number) for number in range(RECORDS)])
    np.savez(work / "a.npz", x=x, y=np.arange(RECORDS) % 2)
    config = write_config(work, {"name": "npz", "args": {"path": "a.npz"}})
    found = facts(check(config))
    assert found["source"].endswith("finite")
    assert found["remaining"].endswith(" records")
    first, total = found["next"], int(found["remaining"].split()[0])
    run_eight(config)
    before = everything(work)
    found = facts(check(config))
    assert everything(work) == before
    assert found["position"].startswith("offset 8 (")
    assert int(found["remaining"].split()[0]) == total - 8
    assert found["next"] != first


def test_a_served_run_that_takes_labels_is_looked_at(work):
    put(work, *range(10))
    source = {"name": "folder", "args": {"root": "inbox", "interval": 0.05}}
    config = write_config(work, source, labels={"max_waiting": 10})
    with open_run(load_config(config, TINY), snapshots=Snapshots(work / "snapshots")) as run:
        assert len(list(run)) == 8
        assert (run.folder / INBOX).is_dir()
    before = everything(work)
    found = facts(check(config))
    assert everything(work) == before
    assert found["position"].startswith("offset 8 (")
    assert found["next"].startswith("cat/08.png, ")


@pytest.mark.parametrize("path", ["spool", "absolute"])
def test_a_spool_is_looked_at_and_nothing_is_received_into_it(work, path):
    spool = {"path": str(work / "elsewhere") if path == "absolute" else path}
    source = {"class": "spool_sources:Camera", "args": {"file": "camera", "records": RECORDS}, "spool": spool}
    run = work / "run"
    config = write_config(work, source, run_dir=str(run), checkpoint={"every_seconds": 1.0})
    assert facts(check(config))["next"] == "none in the spool"
    assert not (work / "camera").exists()
    with closing(build_source(load_config(config, (*TINY, "max_samples=null")), folder=run)) as filled:
        assert sum(len(event) for event in filled if isinstance(event, Batch)) == RECORDS
    found = facts(check(config))
    assert (found["lag"], found["next"].partition(",")[0]) == (f"{RECORDS} records", "p0-000000")
    run_eight(config)
    before = everything(work)
    found = facts(check(config))
    assert everything(work) == before
    assert found["position"].startswith("offset 8 (")
    assert (found["lag"], found["next"].partition(",")[0]) == ("4 records", "p2-000008")


PARTS = """
from pathlib import Path

from streamcl.errors import SourceError
from streams.live.files.folder import FolderReader

import numpy as np


def once():
    for number in range(20):
        Path("read").touch()
        yield np.full((8, 8, 3), number, np.uint8), number % 2


class Trimmed(FolderReader):
    def open(self, position):
        if position is not None:
            raise SourceError("records 8 to 11 are gone", hint="start over")
        super().open(position)
"""


@pytest.mark.parametrize("wait", ["2s", None])
def test_a_source_that_is_read_once_is_not_read(work, wait):
    (work / "parts_once.py").write_text(PARTS)
    config = write_config(work, {"class": "parts_once:once"}, batch={"size": 4, "max_wait": wait})
    found = facts(check(config))
    assert found["next"] == "not read: the source is read once, and the record would be lost"
    assert found["delivery"].startswith("at most once")
    assert not (work / "read").exists()


def test_a_gap_is_said_with_exit_code_3(work):
    (work / "parts_gap.py").write_text(PARTS)
    put(work, *range(RECORDS))
    args = {"root": "inbox", "interval": 0.05}
    config = write_config(work, {"class": "parts_gap:Trimmed", "args": args})
    run_eight(config)
    result = check(config)
    assert facts(result)["next"] == "cannot be read"
    assert isinstance(result.exception, SourceError)
    assert result.exception.exit_code == 3
    assert "records 8 to 11 are gone" in str(result.exception)


def test_a_run_of_another_source_is_refused(work):
    put(work, *range(RECORDS))
    run_eight(write_config(work, {"name": "folder", "args": {"root": "inbox", "interval": 0.05}}))
    other = write_config(work, {"name": "image_folder", "args": {"root": "inbox"}})
    result = check(other)
    assert isinstance(result.exception, ConfigError)
    assert "reads folder" in str(result.exception)
