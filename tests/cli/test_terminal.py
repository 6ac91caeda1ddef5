"""Text of strangers on the terminal: exceptions, labels and file names, in any encoding."""

import json
import os
import subprocess
import sys

import fault_runs
import pytest
from PIL import Image

from streamcl.cli.terminal import echo, one_line, printable
from streamcl.errors import cause_of


def test_control_characters_are_escaped_and_scripts_stay():
    assert printable("猫 é\u200d🐈") == "猫 é\u200d🐈"
    assert printable("a\nb\t\x1b[2J\x9b\udce9\u2028\u202e") == r"a\nb\t\x1b[2J\x9b\udce9\u2028\u202e"
    assert one_line("first\n\n  second\r\nthird\x07") == r"first second third\x07"


def test_lines_and_tabs_of_our_own_stay(capsys):
    echo("a\tb\nc\x1b[31m")
    assert capsys.readouterr().out == "a\tb\nc\\x1b[31m\n"


def test_the_cause_of_any_exception_is_one_line():
    class Unspeakable(Exception):
        def __str__(self):
            raise ValueError

    assert cause_of(Unspeakable()) == "Unspeakable: (its text cannot be read)"
    assert len(cause_of(OSError("x" * 10**6))) < 1100
    assert cause_of(ValueError("two\nlines")) == "ValueError: two lines"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_names_outside_of_the_encoding_of_the_terminal_are_written(tmp_path, encoding):
    command = [sys.executable, "-m", "streamcl", "validate", "猫→é.yaml"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Error" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    if encoding == "utf-8":
        assert "猫→é.yaml" in done.stderr.decode()


EXITS = {
    "source": (
        "def stream():\n    for k in range(24):\n        if k == 13: sys.exit(0)\n        yield image, 'a'\n"
    ),
    "record": (
        "class Odd:\n    def __getattr__(self, name): sys.exit(0)\n"
        "def stream():\n    yield image, 'a'\n    yield Odd(), 'a'\n"
    ),
    "make": "def stream():\n    sys.exit('bye')\n",
    "import": "sys.exit()\n",
    "holdout": (
        "class stream:\n    def __init__(self): self.holdout = Held()\n    def __len__(self): return 9\n"
        "    def __getitem__(self, k): return image, 'a'\n"
        "class Held:\n    def __len__(self): return 3\n    def __getitem__(self, k): sys.exit(0)\n"
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("place", EXITS)
def test_user_code_that_exits_ends_the_run_with_code_3(tmp_path, place, prefetch):
    (tmp_path / "leaves.py").write_text(
        "import sys, numpy as np\nimage = np.zeros((8, 8, 3), np.uint8)\n" + EXITS[place]
    )
    source = {"class": "leaves:stream", "prefetch": prefetch}
    fault_runs.write_config(tmp_path, "leaves.yaml", source=source)
    done = fault_runs.streamcl("run", "leaves.yaml", folder=tmp_path)
    assert done.code == 3
    assert "sys.exit(" in done.err
    assert place != "source" or "at offset 13" in done.err
    assert not (tmp_path / "runs/leaves/summary.json").exists()


@pytest.mark.long
def test_a_learner_that_exits_ends_the_run_with_code_3(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys, numpy as np\n"
        "def stream():\n    yield from [(np.zeros((8, 8, 3), np.uint8), 'a')] * 9\n"
        "class Quits:\n    shift = plateau = None\n    def update(self, loss): sys.exit(0)\n"
        "    def state_dict(self): return {}\n    def load_state_dict(self, state): pass\n"
    )
    changes = {"source": {"class": "mine:stream"}, "shift": {"class": "mine:Quits"}}
    fault_runs.write_config(tmp_path, "mine.yaml", **changes)
    done = fault_runs.streamcl("run", "mine.yaml", folder=tmp_path)
    assert (done.code, "sys.exit(0)" in done.err) == (3, True), done.err


def test_one_line_of_stderr_whatever_the_exception_holds(tmp_path):
    (tmp_path / "loud.py").write_text(
        "import numpy as np\ndef stream():\n    yield np.zeros((8, 8, 3), np.uint8), 'a'\n"
        "    raise OSError('first\\nsecond\\x1b[2J\\r\\n' + 'x' * 10000)\n"
    )
    fault_runs.write_config(tmp_path, "loud.yaml", source={"class": "loud:stream"})
    done = fault_runs.streamcl("run", "loud.yaml", folder=tmp_path)
    (said,) = [line for line in done.err.splitlines() if "first" in line]
    assert "OSError: first second\\x1b[2J" in said
    assert len(said) < 1200


def test_predictions_of_odd_names_are_one_line_each(tmp_path):
    fault_runs.write_config(tmp_path, "odd.yaml", source={"class": "odd:stream"})
    (tmp_path / "odd.py").write_text(
        "import numpy as np\ndef stream():\n    yield from [(np.zeros((8, 8, 3), np.uint8), 'a\\nb')] * 8\n"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "q\x1b[31m\n.png")
    assert fault_runs.streamcl("run", "odd.yaml", folder=tmp_path).code == 0
    done = fault_runs.streamcl("predict", "runs/odd", "q\x1b[31m\n.png", folder=tmp_path)
    assert done.out.splitlines()[0].split("\t")[:2] == [r"q\x1b[31m\n.png", r"a\nb"]
    assert "\x1b" not in fault_runs.streamcl("status", "runs/odd", folder=tmp_path).out
    shown = fault_runs.streamcl("predict", "runs/odd", "q\x1b[31m\n.png", "--json", folder=tmp_path)
    assert json.loads(shown.out)["class"] == "a\nb"
