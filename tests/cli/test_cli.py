"""The command line as a person meets it: real processes, exit codes, one-line causes, resumption."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_runs
import numpy as np
import pytest
from click.testing import CliRunner
from pictures import TINY_VIT, picture
from PIL import Image

from streamcl.cli import cli
from streamcl.config.load import load_config
from streamcl.events import Sample
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run

pytestmark = pytest.mark.long

LABELS = ["ant", "bee", "cat", "dog"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def streamcl(*arguments, folder: Path, check: int | None = 0):
    """The command line in a process of its own, forked from one that has loaded torch."""
    done = fault_runs.streamcl(*arguments, folder=folder)
    assert check is None or done.code == check, done.err
    return done


def anew(*arguments, folder: Path):
    """The command line as a shell starts it."""
    command = [sys.executable, "-m", "streamcl", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with a space in its name, pictures as .npz and a YAML file."""
    folder = tmp_path_factory.mktemp("a b")
    labels = np.repeat(np.arange(4), 40)
    images = np.stack([picture(LABELS[label], number) for number, label in enumerate(labels)])
    np.savez(folder / "pictures.npz", x=images, y=labels, split=(np.arange(160) % 5 == 0).astype(np.int64))
    write_config(folder)
    return folder


def write_config(folder: Path, name="stream.yaml", **changes):
    backbone = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    config = {
        "source": {"name": "npz", "args": {"path": "pictures.npz"}},
        "scenario": {"name": "disjoint", "parts": 2},
        "batch": 8,
        "backbone": backbone,
        "learner": {"name": "online_lora", "learning_rate": 0.01, "first_block": 1, "hard_buffer_size": 4},
        "evaluate": {"every_samples": 48},
        "checkpoint": {"every_samples": 24},
        "precision": "32-true",
    } | changes
    path = folder / name
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    anew("run", "stream.yaml", folder=folder)
    return folder / "runs" / "stream"


def without_clock(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name not in {"timing", "run"}}


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    topics = {"predictions.jsonl", "metrics.jsonl", "events.jsonl"}
    assert {"config.yaml", "summary.json", "report.html", "adapter", "checkpoints"} | topics <= names
    assert len((finished / "predictions.jsonl").read_text().splitlines()) == 128
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["finished"]
    assert summary["samples"] == 128
    assert sorted(summary["class_names"]) == ["0", "1", "2", "3"]
    assert "<svg" in (finished / "report.html").read_text()


def test_a_finished_run_says_so_and_runs_nothing(finished, folder):
    before = (finished / "predictions.jsonl").stat().st_mtime_ns
    done = streamcl("run", "stream.yaml", folder=folder)
    assert "finished" in done.err
    assert (finished / "predictions.jsonl").stat().st_mtime_ns == before


def test_fresh_moves_the_earlier_run_aside_and_repeats_it(finished, folder):
    streamcl("run", "stream.yaml", "--set", "run_dir=runs/again", folder=folder)
    done = streamcl("run", "stream.yaml", "--set", "run_dir=runs/again", "--fresh", folder=folder)
    assert "runs/again.1" in done.err
    assert (
        without_clock(folder / "runs/again.1")
        == without_clock(folder / "runs/again")
        == without_clock(finished)
    )


def test_the_effective_configuration_is_saved_and_runs_again(finished, folder):
    streamcl("validate", finished / "config.yaml", folder=folder)


def test_a_prediction_imports_neither_the_compiler_nor_what_reports_need(finished, folder):
    Image.fromarray(picture("bee", 900)).save(folder / "bee.png")
    code = (
        "import atexit, sys; from streamcl.cli import main\n"
        "atexit.register(lambda: print(*sys.modules))\n"
        "sys.argv[1:] = ['predict', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, finished, "bee.png"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    loaded = shown.splitlines()[-1].split()
    unneeded = {"torch._dynamo", "torch._inductor", "sympy", "jinja2", "onnx", "sklearn", "pandas", "river"}
    assert "timm" in loaded
    assert unneeded & set(loaded) == set()


def test_inspect_report_predict_export_and_doctor_read_the_run(finished, folder):
    assert "Correct before learning" in streamcl("status", finished, folder=folder).out
    (finished / "report.html").unlink()
    assert streamcl("report", finished, folder=folder).out.strip().endswith("report.html")
    Image.fromarray(picture("bee", 900)).save(folder / "bee.png")
    line = json.loads(streamcl("predict", finished, "bee.png", "--json", folder=folder).out)
    learner, _ = load_learner(finished)
    (expected,) = learner.predict([Sample("bee", picture("bee", 900))])
    assert line["class"] == expected.label
    assert line["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert line.keys() >= {"stability", "novelty"}
    assert "merged.safetensors" in streamcl("export", finished, "--out", "out", folder=folder).out
    assert (folder / "out" / "adapter_config.json").exists()
    streamcl("doctor", finished, folder=folder)


@pytest.mark.parametrize("command", ["status", "report", "predict", "export", "doctor", "audit"])
def test_a_folder_that_holds_no_run_is_refused_and_nothing_is_written(finished, folder, command):
    (folder / "plain").mkdir(exist_ok=True)
    more = ["pictures.npz"] if command == "predict" else []
    done = streamcl(command, "plain", *more, folder=folder, check=2)
    assert "plain holds no run" in done.err
    assert list((folder / "plain").iterdir()) == []
    assert "name one of its runs: runs/" in streamcl(command, "runs", *more, folder=folder, check=2).err


def test_a_run_that_was_interrupted_says_how_to_continue_it(finished, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = folder / "runs" / "cut off"
    opened = open_run(load_config(folder / "stream.yaml").model_copy(update={"run_dir": str(run)}))
    with opened:
        for prediction in opened:
            if prediction.offset == 40:
                assert "In progress: process" in streamcl("status", run, folder=folder).out
                opened.stop()
    out = streamcl("status", run, folder=folder).out
    assert "Interrupted at offset 48. This command continues it:" in out
    streamcl(*shlex.split(out.splitlines()[-1])[1:], folder=folder)
    assert "Interrupted" not in streamcl("status", run, folder=folder).out
    assert without_clock(run) == without_clock(finished)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ("return []", "has no records"),
        ("yield from [('absent.png', 'a')] * 3", "none of its 3 records could be used; the last: file"),
    ],
)
def test_a_stream_without_a_usable_record_is_exit_3_and_leaves_no_finished_run(folder, records, said):
    (folder / "nothing.py").write_text(f"def stream():\n    {records}\n")
    write_config(folder, "nothing.yaml", source={"class": "nothing:stream"}, scenario=None)
    assert said in streamcl("run", "nothing.yaml", "--fresh", folder=folder, check=3).err
    assert not (folder / "runs/nothing/summary.json").exists()
    assert "Interrupted at offset" in streamcl("status", "runs/nothing", folder=folder).out


@pytest.mark.faults
def test_stopped_by_sigterm_it_commits_and_goes_on_to_the_same_end(finished, folder):
    process = fault_runs.start("run", "stream.yaml", "--set", "run_dir=runs/stopped", folder=folder)
    log = folder / "runs/stopped/metrics.jsonl"
    fault_runs.until(lambda: log.exists() and log.stat().st_size > 0, process=process)
    process.send(signal.SIGTERM)
    done = process.wait()
    if done.code != 0:  # a fast machine may have ended it before the signal came
        assert done.code == 143, done.err
        assert "stopped at" in done.err
    streamcl("run", "stream.yaml", "--set", "run_dir=runs/stopped", folder=folder)
    assert without_clock(folder / "runs/stopped") == without_clock(finished)


@pytest.mark.faults
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(finished, folder):
    command = [
        sys.executable,
        "-m",
        "streamcl",
        "run",
        "stream.yaml",
        "--set",
        "run_dir=runs/killed",
        "--quiet",
    ]
    began = time.monotonic()
    subprocess.run([*command, "--set", "run_dir=runs/whole"], cwd=folder, env=ENVIRONMENT, check=True)
    whole = time.monotonic() - began
    rng, kills = np.random.default_rng(0), 0
    while kills < 100:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT)
        while not kills and process.poll() is None and not any(folder.glob("runs/killed/checkpoints/c*")):
            time.sleep(0.002)  # the first kill comes with the first checkpoint, however fast the machine is
        try:
            process.wait(timeout=whole * rng.uniform(0.4, 1.2) if kills else 0)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills, "no kill landed: the test showed nothing"
    assert without_clock(folder / "runs/killed") == without_clock(finished)
    name = "predictions.jsonl"
    assert (folder / "runs/killed" / name).read_text() == (finished / name).read_text()


def test_a_bad_configuration_is_exit_2_with_the_place_and_the_nearest_name(folder):
    path = folder / "bad.yaml"
    path.write_text("source: {name: npz}\nbatchsize: 8\nlearner: {name: online_lora, rank: 0}\n")
    done = streamcl("run", "bad.yaml", folder=folder, check=2)
    assert "bad.yaml:2:1" in done.err
    assert "batch" in done.err
    assert "bad.yaml:3:" in done.err
    assert "Traceback" not in done.err
    assert not (folder / "runs" / "bad").exists()


def test_a_changed_configuration_is_refused_with_the_difference(finished, folder):
    done = streamcl("run", "stream.yaml", "--set", "batch=16", folder=folder, check=2)
    assert "batch.size: 8 -> 16" in done.err
    assert "--fresh" in done.err


def test_a_source_that_fails_is_exit_3(folder):
    (folder / "broken.py").write_text(
        "import numpy as np\n"
        "def stream():\n"
        "    for i in range(12):\n"
        "        yield np.zeros((8, 8, 3), np.uint8), 'a'\n"
        "    raise OSError('the camera is gone')\n"
    )
    write_config(folder, "broken.yaml", source={"class": "broken:stream"}, scenario=None)
    done = streamcl("run", "broken.yaml", folder=folder, check=3)
    assert "the camera is gone" in done.err
    assert "Traceback" not in done.err


def test_a_damaged_checkpoint_is_exit_4_when_strict(folder):
    streamcl("run", "stream.yaml", "--set", "run_dir=runs/torn", "--set", "max_samples=48", folder=folder)
    newest = sorted((folder / "runs/torn/checkpoints").iterdir())[-1]
    with (newest / "state.json").open("r+b") as handle:
        handle.write(b"\0")
    done = streamcl("run", "stream.yaml", "--set", "run_dir=runs/torn", "--strict", folder=folder, check=4)
    assert "state.json" in done.err
    done = streamcl("run", "stream.yaml", "--set", "run_dir=runs/torn", folder=folder)
    assert "trying the one before it" in done.err


def test_a_second_process_on_one_run_is_refused(folder):
    from streamcl.storage.lock import RunLock

    (folder / "runs/held").mkdir(parents=True, exist_ok=True)
    with RunLock(folder / "runs/held"):
        done = streamcl("run", "stream.yaml", "--set", "run_dir=runs/held", folder=folder, check=2)
    assert str(os.getpid()) in done.err


def test_small_commands(folder):
    assert streamcl("--version", folder=folder).out.startswith("streamcl, version")
    assert json.loads(streamcl("schema", folder=folder).out)["title"] == "streamcl run"
    assert "npz" in streamcl("list", "sources", folder=folder).out
    assert "relative" in streamcl("list", "detectors", folder=folder).out
    assert "vit_small_patch14_dinov2" in streamcl("list", "backbones", "vit_small*dinov2*", folder=folder).out
    assert "imagenet-sketch" in streamcl("fetch", folder=folder).out
    assert streamcl("run", folder=folder, check=2).err
    assert "by hand" not in streamcl("fetch", "nonsense", folder=folder, check=2).err


def test_a_traceback_only_where_it_was_asked_for(folder):
    assert "Traceback" in streamcl("--debug", "run", "missing.yaml", folder=folder, check=2).err
    assert "Traceback" not in streamcl("run", "missing.yaml", folder=folder, check=2).err


def test_a_slip_in_the_arguments_can_be_mended_in_place(folder):
    """Nothing was learned under the first file, so it binds nobody."""
    write_config(folder, "slip.yaml", source={"name": "npz", "args": {"path": "absent.npz"}})
    streamcl("run", "slip.yaml", folder=folder, check=3)
    write_config(folder, "slip.yaml", max_samples=16)
    streamcl("run", "slip.yaml", folder=folder)


def test_own_sinks_and_detectors_are_found_by_their_paths(folder):
    (folder / "parts.py").write_text(
        "from streamcl.shift.detector import SilentDetector\n"
        "def quiet(word):\n"
        "    return SilentDetector()\n"
        "class Counting:\n"
        "    def __init__(self, folder, name):\n"
        "        self.path, self.count = folder / name, 0\n"
        "    def write(self, topic, record):\n"
        "        self.count += 1\n"
        "    def flush(self):\n"
        "        self.path.write_text(str(self.count))\n"
        "    def close(self): pass\n"
        "    def state_dict(self): return {}\n"
        "    def load_state_dict(self, state): pass\n"
    )
    own = {"class": "parts:Counting", "args": {"name": "count.txt"}}
    shift = {"class": "parts:quiet", "args": {"word": "hush"}}
    write_config(folder, "own.yaml", sinks=[own], shift=shift, max_samples=16)
    streamcl("run", "own.yaml", folder=folder)
    assert int((folder / "runs/own/count.txt").read_text()) > 16
    write_config(folder, "own.yaml", shift={"class": "parts:quiet", "args": {"wrong": 1}})
    done = streamcl("run", "own.yaml", "--fresh", folder=folder, check=2)
    assert "own.yaml:1:" in done.err


def test_a_finished_run_of_a_stream_that_is_read_once_stays_finished(folder):
    (folder / "once.py").write_text(
        "import numpy as np\n"
        "def stream():\n"
        "    for i in range(12):\n"
        "        yield np.full((8, 8, 3), 20 * i, np.uint8), 'ab'[i % 2]\n"
    )
    write_config(folder, "once.yaml", source={"class": "once:stream"}, scenario=None)
    assert "cannot be replayed" in streamcl("run", "once.yaml", folder=folder).err
    assert "finished" in streamcl("run", "once.yaml", folder=folder).err


def test_predict_names_the_good_images_beside_a_bad_one(finished, folder):
    Image.fromarray(picture("bee", 901)).save(folder / "good.png")
    (folder / "bad.png").write_text("not an image")
    done = streamcl("predict", finished, "bad.png", "good.png", folder=folder, check=3)
    assert done.out.startswith("good.png")
    assert "bad.png" in done.err


def test_predict_takes_folders_patterns_and_standard_input(finished, folder, monkeypatch):
    inbox = folder / "inbox"
    (inbox / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.png"):
        Image.fromarray(picture("cat", 901)).save(inbox / name)
    (inbox / "notes.txt").write_text("no image")
    monkeypatch.chdir(folder)

    def names(*arguments, text=""):
        result = CliRunner().invoke(cli, ["predict", str(finished), *arguments], input=text)
        assert result.exit_code == 0, result.output
        return [line.split("\t") for line in result.output.splitlines()]

    assert [row[0] for row in names("inbox")] == ["inbox/a.png", "inbox/b.png", "inbox/deep/c.png"]
    assert [row[0] for row in names("inbox/*.png")] == ["inbox/a.png", "inbox/b.png"]
    assert [row[0] for row in names("-", text="inbox/b.png\n\ninbox/a.png\n")] == [
        "inbox/b.png",
        "inbox/a.png",
    ]
    (row,) = names("inbox/a.png", "--top", "3")
    assert len(row) == 7
    assert [float(each) for each in row[2::2]] == sorted(map(float, row[2::2]), reverse=True)
    assert names("inbox/a.png")[0] == row[:3]
    assert names("inbox/a.png", "--threshold", "1.0")[0][1] == "(no class)"
    assert "no image is found" in streamcl("predict", finished, "inbox/*.gif", folder=folder, check=2).err


def test_the_default_learner_forgets_a_class_of_a_generator_that_repeats_itself(folder):
    (folder / "parts_line.py").write_text(
        "import numpy as np\n"
        "def stream():\n"
        "    for i in range(64):\n"
        "        rng = np.random.default_rng(i)\n"
        "        yield rng.integers(0, 60, (16, 16, 3), np.uint8) + np.uint8(60 * (i % 3)), 'xyz'[i % 3]\n"
    )
    source = {"class": "parts_line:stream", "deterministic": True}
    write_config(folder, "line.yaml", source=source, scenario=None, learner={"name": "ridge_lora"})
    streamcl("run", "line.yaml", folder=folder)
    exported = {path.name for path in (folder / "runs/line/adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "merged.safetensors"} <= exported
    streamcl("forget", "runs/line", "--class", "y", "--execute", folder=folder)
    receipt = next((folder / "runs/line/receipts").glob("*.json"))
    assert json.loads(receipt.read_text())["guarantee"] == "exact"
    streamcl("verify", receipt, folder=folder)
    learned = json.loads((folder / "runs/line/summary.json").read_text())["class_names"]
    assert sorted(learned) == ["x", "z"]


def test_a_scenario_orders_a_data_set_of_ones_own(folder):
    (folder / "indexed.py").write_text(
        "import numpy as np\n"
        "class Pictures:\n"
        "    def __len__(self): return 48\n"
        "    def __getitem__(self, i): return np.full((8, 8, 3), 5 * i, np.uint8), 'abcd'[i % 4]\n"
    )
    write_config(folder, "indexed.yaml", source={"class": "indexed:Pictures"}, learner="ridge")
    streamcl("run", "indexed.yaml", folder=folder)
    lines = (folder / "runs/indexed/predictions.jsonl").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert len(set(labels[:24])) == len(set(labels[24:])) == 2
