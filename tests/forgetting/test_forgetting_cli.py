"""As a new user would: a stream with subjects, asked to forget while it runs, killed, resumed, verified."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SOURCE = '''
import time

import numpy as np


def visitors(count=280, pause=0.0):
    """Pictures of three kinds, each of one of five people; the same each time."""
    for number in range(count):
        time.sleep(pause)
        kind = ("cat", "dog", "hen")[number % 3]
        level = {"cat": 40, "dog": 120, "hen": 200}[kind]
        noise = np.random.default_rng(number).integers(-30, 30, (32, 32, 3))
        who = {"id": f"visit-{number:04d}", "subject": f"person {number % 5}"}
        yield {"image": (noise + level).astype(np.uint8), "label": kind, **who}
'''

CONFIG = """
source:
  class: visitors:visitors
  args: {count: 280, pause: PAUSE}
  deterministic: true
backbone:
  name: vit_tiny_patch16_224
  weights: none
  image_size: 32
  args: {patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2}
learner: LEARNER
batch: 8
checkpoint: {every_samples: 64}
threads: 1
precision: 32-true
"""


class User:
    """Someone at a command line in a folder of their own."""

    def __init__(self, folder: Path, learner: str, statistics: str | None, pause: float):
        self.folder, self.run = folder, folder / "runs" / "visitors"
        kept = f"forgetting: {{keep_statistics: {statistics}}}\n" if statistics else ""
        (folder / "visitors.py").write_text(SOURCE)
        config = CONFIG.replace("LEARNER", learner).replace("PAUSE", str(pause))
        (folder / "visitors.yaml").write_text(config + kept)

    def start(self, *words: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "streamcl", *map(str, words)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        text, _ = process.communicate(timeout=600)
        return process.returncode, text

    def wait(self, what, seconds=600):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.02)

    def predicted(self) -> int:
        log = self.run / "predictions.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def receipts(self):
        return sorted((self.run / "receipts").glob("*.json"))

    def holds(self, text: bytes) -> list[str]:
        files = (path for path in self.run.rglob("*") if path.is_file())
        return [path.name for path in files if text in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "statistics"),
    [
        ("ridge", None),
        ("ridge", "per_class"),
        ("{name: ridge_lora, lora: {warmup_samples: 64, rank: 2}}", "per_subject"),
    ],
)
def test_a_stream_is_asked_while_it_runs_then_killed_resumed_and_verified(tmp_path, learner, statistics):
    user = User(tmp_path, learner, statistics, pause=0.03)
    process = user.start("run", "visitors.yaml", "--quiet")
    try:
        user.wait(lambda: user.predicted() >= 96 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        code, first = user.call("forget", user.run, "--subject", "person 3", "--guarantee", "exact")
        assert code == 0, first
        user.wait(lambda: len(user.receipts()) == 1)
        code, second = user.call("forget", user.run, "--class", "hen", "--key", "letter 12")
        assert code == 0, second
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, text = user.call("run", "visitors.yaml", "--quiet")
    assert code == 0, text
    assert user.call("forget", user.run, "--class", "hen", "--key", "letter 12") == (
        0,
        second,
    )  # the same one
    names = {path.stem for path in user.receipts()}
    assert names == {first.strip(), second.strip()}
    for path in user.receipts():
        receipt = json.loads(path.read_text())
        assert (receipt["outcome"], receipt["guarantee"]) == ("done", "exact"), receipt
        code, text = user.call("verify", path)
        assert code == 0, text
        assert "unbroken chain of 2" in text
    assert user.holds(b"person 3") == []
    assert user.holds(b'"hen"') == []
    assert b"hen" not in (user.run / "predictions.jsonl").read_bytes()
    summary = json.loads((user.run / "summary.json").read_text())
    assert sorted(summary["class_names"]) == ["cat", "dog"]
    assert user.call("doctor", user.run)[0] == 0
    changed = user.receipts()[0]
    changed.write_bytes(changed.read_bytes().replace(b'"done"', b'"Done"', 1))
    code, text = user.call("verify", changed)
    assert code == 6
    assert "has been changed" in text


@pytest.mark.slow
def test_two_that_ask_at_once_are_both_answered(tmp_path):
    """The one that comes second to the run directory waits for the first."""
    user = User(tmp_path, "ridge", None, pause=0.0)
    assert user.call("run", "visitors.yaml", "--quiet")[0] == 0
    both = [user.start("forget", user.run, "--subject", f"person {k}", "--execute") for k in (1, 2)]
    for process in both:
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
        assert "done: exact" in text
    assert len(user.receipts()) == 2
