"""The first steps of docs/serving.md, as a new user takes them: its configuration, its commands in order."""

from __future__ import annotations

import json
import shutil

import pytest
from conditions import wait_for
from documentation import DOCS, TINY, Block, Follower, blocks_in, following
from pictures import encoded_picture

WALK = (DOCS / "serving.md").read_text("utf-8").partition("## From nothing to a receipt")[2]
WALK = WALK.partition("\n## ")[0]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def blocks(language):
    return [block.text for block in blocks_in(WALK) if block.language == language]


@pytest.fixture
def terminal(tmp_path):
    yield from following(Follower(tmp_path, lasting=("streamcl serve",)))


def test_a_new_user_comes_from_nothing_to_a_receipt(terminal, tmp_path):
    (tmp_path / "inbox").mkdir()
    for name in ("gear", "bolt", "wheel"):
        for number in range(1, 41):
            image = encoded_picture({"gear": "ant", "bolt": "bee", "wheel": "owl"}[name], number)
            (tmp_path / "inbox" / f"{name}_{number:04d}.png").write_bytes(image)
    (config,) = blocks("yaml")
    (tmp_path / "my_stream.yaml").write_text(f"{config}backbone: {json.dumps(TINY)}\n")
    send, accuracy, predict, correct, forget, receipts, verify = (
        line for block in blocks("sh") for line in block.splitlines()
    )

    def run(line):
        return terminal.follow(Block("bash", line))

    run("streamcl serve my_stream.yaml")
    run(send)
    metrics = tmp_path / "runs" / "my_stream" / "metrics.jsonl"
    wait_for(lambda: metrics.read_text().count('"offset": 120'))
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    seen = [each["accuracy"] for each in steps if each.get("accuracy") is not None]
    assert seen[-1] > seen[0]
    assert '"offset": 120' in run(accuracy)
    wait_for(lambda: json.loads(run(predict))["predictions"][0]["class"] == "gear")
    assert json.loads(run(correct)) == {"accepted": 1}
    events = tmp_path / "runs" / "my_stream" / "events.jsonl"
    wait_for(lambda: '"corrected"' in events.read_text())
    assert json.loads(run(forget))["status"] == "received"
    wait_for(lambda: json.loads(run(receipts))["requests"][0]["status"] == "done")
    assert "done" in run(verify)
    assert json.loads(run(predict))["predictions"][0]["class"] != "bolt"
    assert terminal.stop() == [143]
