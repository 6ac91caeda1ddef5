"""What lies in a run directory that streamcl has not written, and beside it."""

import json
import shutil

import pytest
from canary_stream import CANARY_SUBJECT
from pictures import encoded_picture
from tiny_runs import call, configuration

from streamcl.runs.doctor import check_run
from streamcl.runs.open import open_run
from streamcl.storage.run_files import RUN_FILES, earlier_runs, unknown_files
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots


@pytest.fixture
def run(tmp_path):
    source = {"class": "canary_stream:stream", "args": {"refused": False}}
    options = configuration(tmp_path, source=source, max_samples=64, sinks=[{"name": "tensorboard"}])
    with open_run(options) as opened:
        list(opened)
        opened.finish()
    return tmp_path / "run"


def forget(run):
    """Ask and carry out; return the code, what was printed, and the receipt."""
    code, text = call("forget", run, "--subject", CANARY_SUBJECT, "--execute")
    (path,) = (run / "receipts").glob("*.json")
    return code, text, path


def places(path):
    return {place["name"]: place for place in json.loads(path.read_text())["locations"]}


def test_everything_that_a_run_writes_is_known(run):
    _, _, path = forget(run)
    assert unknown_files(run) == []
    assert not {"other files", "earlier runs"} & places(path).keys()


def test_the_inbox_of_a_served_run_is_known(tmp_path):
    (tmp_path / "in" / "bee").mkdir(parents=True)
    for number in range(8):
        (tmp_path / "in" / "bee" / f"{number}.png").write_bytes(encoded_picture("bee", number))
    source = {"name": "folder", "args": {"root": str(tmp_path / "in"), "interval": 0.05}}
    labels = {"max_waiting": 10}
    options = configuration(tmp_path, source=source, max_samples=8, batch=4, labels=labels)
    folder = tmp_path / "run"
    with open_run(options, snapshots=Snapshots(folder / SNAPSHOTS)) as opened:
        list(opened)
    assert list((folder / "inbox").iterdir())
    assert unknown_files(folder) == []


@pytest.mark.parametrize(
    "name", ["predictions.jsonl.bak", "old/predictions.jsonl", "samples/copy.png", "notes"]
)
def test_a_copy_in_the_run_directory_is_seen_by_receipt_verify_and_doctor(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    shutil.copy(run / "predictions.jsonl", run / name)
    _, _, path = forget(run)
    assert places(path)["other files"]["status"] == "remains"
    code, text = call("verify", path)
    assert code == 6
    assert "copies of logs still hold an erased sample" in text
    (run / name).write_text("harmless")
    code, text = call("verify", path)
    assert code == 0, text
    assert f"streamcl has not written it: {name}" in text
    assert name in {each.place for each in check_run(run)}


@pytest.mark.long
def test_a_run_that_was_moved_aside_is_named(run):
    with open_run(run / "config.yaml", fresh=True) as opened:
        list(opened)
    assert [path.name for path in earlier_runs(run)] == ["run.1"]
    code, text, path = forget(run)
    assert code == 0, text
    assert "run.1 was moved aside by --fresh and keeps its data" in text
    assert places(path)["earlier runs"]["status"] == "remains"
    assert any("run.1" in each.text for each in check_run(run))
    assert "run.1" in call("verify", path)[1]
    assert call("forget", run.with_name("run.1"), "--subject", CANARY_SUBJECT, "--execute")[0] == 0


def test_another_name_of_a_log_is_noticed(run, tmp_path):
    (tmp_path / "elsewhere").hardlink_to(run / "predictions.jsonl")
    assert any("hard link" in each.text for each in check_run(run))


@pytest.mark.parametrize("name", ["run.1.txt", "run.a", "runs.1", "run.2"])
def test_only_runs_of_this_name_are_earlier_ones(tmp_path, name):
    for folder in ("run", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.yaml").touch()
    assert [path.name for path in earlier_runs(tmp_path / "run")] == (["run.2"] if name == "run.2" else [])


@pytest.mark.parametrize("place", ["checkpoints/checkpoint-00000002-step-9", "snapshots/snapshot-7"])
def test_a_large_array_that_does_not_change_is_known(place):
    assert RUN_FILES.fullmatch(f"{place}/array-{'0a' * 32}.bin")
    assert not RUN_FILES.fullmatch(f"{place}/array-0a.bin")


def test_names_that_only_begin_like_ours_are_not_ours():
    assert not RUN_FILES.fullmatch("predictions.jsonl.bak")
    assert not RUN_FILES.fullmatch("checkpoints/predictions.jsonl")
