"""The measurements of a GPU end within ten minutes, go on after one that fails, and can be tried on a CPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from pictures import TINY_VIT, make_batch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from bit_equality import WAYS, by_count, compared, rows

from streamcl.learners.block_features import FrozenReader
from streamcl.nn.build import build_backbone
from streamcl.nn.device import Compute

CPU = torch.device("cpu")
SAMPLES = make_batch(0, ["ant", "bee", "cat"] * 7).samples


def test_all_of_it_ends_within_ten_minutes(tmp_path) -> None:
    chosen = gpu.sections("cuda", small=False, scratch=tmp_path)
    assert sum(each.seconds for each in chosen) <= 560
    assert all((gpu.HERE / each.program).exists() for each in chosen)
    assert len({each.name for each in chosen}) == len(chosen)


def test_a_section_that_fails_says_why_and_the_next_goes_on(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "breaks.py").write_text("print('so far'); raise SystemExit('the driver is too old')\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    section = gpu.Section("broken", "Broken", "breaks.py", (), 60)
    monkeypatch.setattr(gpu, "sections", lambda *_: [section, dataclasses.replace(section, title="Again")])
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    (page,) = tmp_path.glob("*-cpu.md")
    text = page.read_text(encoding="utf-8")
    assert text.count("so far\nfailed: the driver is too old") == 2
    assert "## Again" in capsys.readouterr().out


def test_a_section_that_takes_too_long_is_given_up(tmp_path, monkeypatch) -> None:
    (tmp_path / "waits.py").write_text("import time; print('so far', flush=True); time.sleep(600)\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    assert "given up after 1 s" in gpu.run(gpu.Section("waits", "Waits", "waits.py", (), 1))


@pytest.mark.slow
def test_all_sections_run_on_a_cpu_with_tiny_sizes(tmp_path) -> None:
    small = [
        dataclasses.replace(each, seconds=600) for each in gpu.sections("cpu", small=True, scratch=tmp_path)
    ]
    pages = [gpu.run(each) for each in small]
    assert not [page for page in pages if "failed: " in page or "given up" in page]
    for page, word in zip(
        pages, ["unpadded", "floor", "share of the peak", "alone", "whole pause"], strict=True
    ):
        assert word in page


def reader(way=FrozenReader):
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT)
    return way(backbone, Compute(CPU, "32-true", rows=16), [2])


def test_features_in_chunks_are_equal_in_every_company() -> None:
    plain = reader()
    assert by_count(plain, SAMPLES, plain(SAMPLES)).equal


def test_features_that_depend_on_their_company_are_found() -> None:
    class Mixing(FrozenReader):
        def __call__(self, samples):
            features = super().__call__(samples)
            return features + 1e-3 * features.mean(0)

    mixing = reader(Mixing)
    found = by_count(mixing, SAMPLES, mixing(SAMPLES))
    assert not found.equal
    assert 1e-6 < found.relative < 1e-2
    assert str(found).startswith("differ by ")


def test_equal_tensors_are_equal_and_one_bit_is_a_difference() -> None:
    one = torch.ones(2, 3)
    assert str(compared(one, one.clone())) == "equal"
    assert not compared(one, torch.nextafter(one, 2 * one)).equal


def test_a_row_for_each_way() -> None:
    config = {
        "source": "demo_digits",
        "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT},
        "device": "cpu",
        "precision": "32-true",
    }
    compute, made = rows(config, ["plain"], SAMPLES)
    assert compute.device == CPU
    assert made[0] == "| plain | equal | equal | equal |"
    assert made[1].startswith("| unpadded | ")
    assert set(WAYS) == {"plain", "compiled", "graphed", "compiled, graphed"}
