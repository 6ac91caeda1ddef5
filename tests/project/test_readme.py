"""The README is short, and a newcomer who does what it says gets what it promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import README, Follower, blocks_of, following
from streams_data import write_picture

from streamcl.config.load import load_config

TEXT = README.read_text(encoding="utf-8")
DEMO = README.parent / "configs" / "demo.yaml"
ELSEWHERE = ("make ", "source .venv", "pip install")
"""Commands that .ci/run gives, or whose effect is there where tests run."""


def test_it_is_short_and_shows_the_report() -> None:
    assert len(TEXT.splitlines()) <= 200
    (picture,) = re.findall(r"^!\[[^]]+\]\(([^)]+)\)$", TEXT, re.MULTILINE)
    assert (README.parent / picture).stat().st_size < 200_000


def test_its_opening_is_three_sentences() -> None:
    opening = TEXT.split("\n\n")[1]
    assert len(re.findall(r"[.]\s", f"{opening}\n")) == 3


def test_the_camera_runs_with_the_weights_of_the_demo(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(README) if block.file == "camera.yaml")
    (tmp_path / "camera.yaml").write_text(block.text)
    assert load_config(tmp_path / "camera.yaml").backbone == load_config(
        "configs/demo.yaml"
    ).backbone.model_copy(update={"image_size": 98})


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Follower]:
    """One in whose folder a camera has taken forty pictures."""
    for number in range(40):
        kind = ("gear", "bolt")[number % 2]
        write_picture(tmp_path / "inbox" / kind / f"{number // 2 + 1:04d}.png", number)
        write_picture(tmp_path / "inbox" / "bolt" / "0002.png", 3)
    yield from following(Follower(tmp_path, ("streamcl run", "streamcl serve"), ELSEWHERE))


@pytest.mark.slow
def test_a_newcomer_can_do_what_it_says(newcomer: Follower) -> None:
    run = newcomer.folder / "runs" / "camera"
    for block in blocks_of(README):
        if "my_stream.yaml" in block.text:
            continue  # of another page, where it is run
        newcomer.follow(block)
        if "streamcl run" in block.text:
            newcomer.wait_for(lambda: any((run / "checkpoints").glob("*/manifest.json")))
        elif "streamcl report" in block.text:
            assert newcomer.stop() == [143]
    assert newcomer.stop() == [143]
    (receipt,) = (run / "receipts").glob("[!_]*.json")
    assert json.loads(receipt.read_text())["guarantee"] == "exact"
