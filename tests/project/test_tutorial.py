"""The tutorial works from its first command to its last, and shows what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import DOCS, Follower, blocks_of, following, weights_are_there

PAGE = DOCS / "tutorial.md"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Follower]:
    yield from following(Follower(tmp_path, ("streamcl serve",)))


def words(text: str) -> list[list[str]]:
    """Return the beginning of each line: the file, and the class where real weights are there; no figures."""
    shown = 2 if weights_are_there() else 1
    return [line.replace(",", " ").split()[:shown] for line in text.splitlines()]


@pytest.mark.slow
def test_each_block_works_in_turn(reader: Follower) -> None:
    printed = ""
    for block in blocks_of(PAGE):
        if block.language == "text":
            assert words(printed)[-len(words(block.text)) :] == words(block.text)
        else:
            printed = reader.follow(block)
    assert reader.stop() == [143]
    run = reader.folder / "runs" / "parts"
    (receipt,) = (run / "receipts").glob("[!_]*.json")
    assert json.loads(receipt.read_text())["guarantee"] == "exact"


def test_its_files_are_as_long_as_a_reader_bears() -> None:
    files = {block.file: block.text.count("\n") for block in blocks_of(PAGE) if block.file}
    assert set(files) == {"camera.py", "parts.py", "parts.yaml"}
    assert max(files.values()) <= 30
